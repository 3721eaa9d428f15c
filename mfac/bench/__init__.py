"""What each operator costs on this machine: `python -m mfac.bench`.

Every measurement is first checked against float64, then timed in turn with the ceiling it is held
against (a streaming read or a matrix product), with a composition of plain torch, and with the
paper's own recurrence where there is one.
"""
