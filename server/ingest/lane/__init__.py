"""The publishing port: the publishing doors over a lean HTTP/1.1 of their own, for backends inside.

`protocol` one connection, `requests` what comes on it, `head` what a request says, `answers` how it is answered, `port`
all connections and their end. What a door does is in `ingest`, the same for the main port.
"""
