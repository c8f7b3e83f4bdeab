"""One click from a process of its own: ``python click.py HOST PORT PATH COOKIES FORM``.

It connects, waits for the end of its input, posts the form, and prints the status and the page. Standard library only.
"""

import http.client
import sys

if __name__ == "__main__":
    host, port, path, cookies, form = sys.argv[1:]
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.connect()
    sys.stdin.read()
    connection.request("POST", path, form, {"Cookie": cookies, "Content-Type": "application/x-www-form-urlencoded"})
    answer = connection.getresponse()
    sys.stdout.buffer.write(f"{answer.status}\n".encode() + answer.read())
