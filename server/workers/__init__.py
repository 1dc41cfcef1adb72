"""Several processes that serve on the same ports, and the one over them.

`supervisor`: starts, restarts, replaces and ends them. `child`: one of them, as the supervisor sees it. `signs`: of
life, by which it knows who hangs. `tally`: the figures of all. `channel`: what the two sides say to each other.
`worker`: that other side. `seat`: what a `Server` is given of all this, also where it is alone.
"""
