"""Whether a running server speaks dialect 2 as docs/protocol.md has it: clients of its own, which go by that document
alone, and a check for each of its rules. Nothing here knows the inside of the server."""
