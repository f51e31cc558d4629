"""A comet on gRPC's C core: comet.py PORT serves both dialects on 127.0.0.1:PORT.

It has the core's defaults: a client that pings more often than allowed is sent "too many pings"
and cut off. Requests stay in their bytes, which the wrapper in tests/support/peers decodes. What
happens is reported on standard output, one JSON object per line.
"""

import base64
import json
import sys
import time
from concurrent import futures

import grpc

CODES = {code.value[0]: code for code in grpc.StatusCode}


def tell(event):
    # One write, so that concurrent readers see whole lines.
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class Comet:
    def __init__(self):
        self.now = {}

    def answer(self, path):
        def handle(request, context):
            lists = [value for name, value in context.invocation_metadata() if name == "halley-message-id"]
            ids = [id for list in lists for id in list.split(",")]
            tell({"method": path, "ids": ids, "request": base64.b64encode(request).decode()})
            now = self.now
            time.sleep(now.get("delay_ms", 0) / 1000)
            if now.get("status", 0):
                context.abort(CODES[now["status"]], now.get("message", ""))
            return b""

        return handle

    def behave(self, request, _context):
        self.now = json.loads(request)
        return b""


def main():
    comet = Comet()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=[("grpc.so_reuseport", 0)])
    for dialect in "ChatRoom.Comet.Comet", "goim.comet.Comet":
        methods = {
            name: grpc.unary_unary_rpc_method_handler(comet.answer(f"/{dialect}/{name}"))
            for name in ("PushMsg", "Broadcast", "BroadcastRoom", "Rooms")
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(dialect, methods),))
    control = {"Behave": grpc.unary_unary_rpc_method_handler(comet.behave)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("halley.Peer", control),))
    address = f"127.0.0.1:{sys.argv[1]}"
    server.add_insecure_port(address)
    server.start()
    tell({"listening": address})
    server.wait_for_termination()


if __name__ == "__main__":
    main()
