"""`notification-server torture`: a server, its store and its neighbours are started, loaded, broken in every way there
is, and then asked what became of all that was acknowledged. docs/torture.md says what is done and what is checked.

`children`, `services`, `mongod`, `node`, `observed`, `sink`: the processes. `publishers`, `brokers`: who publishes.
`lines`, `clients`, `streams`, `feeds`, `hands`: who listens, and changes; what one of dialect 2 knows is that of the
conformance kit (`conformance.model`). `faults`: what is broken. `ledger`, `mailbox`: what was promised, and mailed;
`judging`, `leaks`: whether it was kept; `report`: what is printed. `house`: all that runs; `run`: the torture, in
order.
"""
