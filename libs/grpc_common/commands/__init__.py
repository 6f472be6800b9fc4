"""Programs for operators: the health probe and the doctor."""
