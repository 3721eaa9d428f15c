"""Measurements that anyone can run again: `python -m bench` for all, `python -m bench.<name>` for one."""
