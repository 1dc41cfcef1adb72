"""The backplane of many nodes.

`link`: what a way between nodes has to do; `redis*` and `mongodb` are two. `codec`: what travels on it. `outgoing`:
what waits to be sent. `gaps`: what is done about what may not have come. `asking`: questions to the other nodes.
`backplane` puts them together, around the backplane of this node.
"""
