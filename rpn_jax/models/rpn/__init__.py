"""The first stage: the RPN head, its targets, its loss and its proposals."""
