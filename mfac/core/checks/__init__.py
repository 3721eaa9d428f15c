"""The checks of arguments that every public function shares, and the one form their errors take.

Every message names the parameter, what it should be and what was found::

    Parameter `v` should have last dimension d=1000. Found shape [5, 999].

Shapes and values raise `ValueError`, types and dtypes `TypeError`.
"""
