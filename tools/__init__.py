"""Programs for who works on mfac: parts of the documentation that are made from the code and from measurements."""
