"""The demo of `make run`: who may sign in, and (in the modules below) their machines."""

PASSWORD = "demo-console"  # noqa: S105 - the demo alone has it, and prints it
ADMIN = "dana"
ACCOUNTS = ("alice", "bob", "charlie", ADMIN)
