"""Where tasks wait for each other, and the driver sees who has come. Runs on the driver.

In: one value per task and round, as JSON over TCP, from tasks that know the token. Out: the values
of all, to each. Spark's barrier mode would do this too, but not under dynamic allocation; where
slots are short it tries for ten minutes, and it does not say which tasks have come.
"""

import hmac
import json
import secrets
import socketserver
import threading
import time
from collections import defaultdict

FIRST = "start"  # the round to which all are to come
LONGEST_LINE = 1 << 20
AFTER_SECONDS = 15.0  # for those that have met to meet once more


class Rendezvous:
    """A context manager; inside it, tasks may `probe.gather` at `port`.

    The round ``start`` ends when all have come or `seconds` have passed; who comes later is sent away
    with an empty answer. Other rounds wait for those that were in it.
    """

    def __init__(self, bind: str, num_tasks: int, seconds: float):
        self.token = secrets.token_hex(16)
        self.num_tasks, self.until = num_tasks, time.monotonic() + seconds
        self.rounds, self.changed = defaultdict(dict), threading.Condition()
        rendezvous = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self):
                token = self.rfile.readline(LONGEST_LINE).strip()
                if hmac.compare_digest(token, rendezvous.token.encode()):
                    said = json.loads(self.rfile.readline(LONGEST_LINE))
                    answer = rendezvous.wait(said["round"], said["rank"], said["value"])
                    self.wfile.write((json.dumps(answer) + "\n").encode())

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server((bind, 0), Connection)
        self.port = self.server.server_address[1]

    def wait(self, name: str, rank: int, value) -> dict:
        """Add a value to a round; return the round's values when it ends."""
        with self.changed:
            came, is_first = self.rounds[name], name == FIRST
            if is_first and self.is_over():
                return {}
            came[rank] = value
            self.changed.notify_all()
            until = self.until + (0 if is_first else AFTER_SECONDS)
            wanted = self.num_tasks if is_first else len(self.rounds[FIRST])
            self.changed.wait_for(lambda: len(came) >= wanted, max(0, until - time.monotonic()))
            return dict(came)

    def is_over(self) -> bool:
        """Whether the time to come has passed."""
        return time.monotonic() >= self.until

    def values(self, name: str) -> list:
        """What has been brought to a round so far, in the order of ranks."""
        with self.changed:
            return [value for _, value in sorted(self.rounds[name].items())]

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
