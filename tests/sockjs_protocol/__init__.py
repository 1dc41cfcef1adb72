"""Conformance to the SockJS protocol 0.3.3, in the order of its sections: one file for each group of them.

The tests run against the services of tests/support/sockjs_services.py, or against any server that has the four
services of the protocol's own test server (/echo, /disabled_websocket_echo, /cookie_needed_echo, /close):

    pytest tests/sockjs_protocol --sockjs-url http://127.0.0.1:8081        (or SOCKJS_URL in the environment)

https://sockjs.github.io/sockjs-protocol/sockjs-protocol-0.3.3.html
"""
