"""How work is carried out: the interfaces that stages use, and threads of this process."""
