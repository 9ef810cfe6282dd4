"""Crawl a web site from several nodes at once, until enough pages are known.

Shows: `genrpc.aio` with asyncio's own tools; a coroutine function that runs on the nodes; that
cancelling a task cancels its call, and the coroutine on the other node with it.

    python examples/crawl.py                              # a site of its own, on loopback
    python examples/crawl.py http://localhost:8000/ 20    # another one, at most 20 pages

Output:

    /              title: Home              from node0
    /page1         title: Page 1            from node1
    …
    12 pages; 1 request was cancelled, which the site saw
"""

from __future__ import annotations

import asyncio
import re
import sys
from urllib.parse import urljoin, urlsplit

import genrpc
import genrpc.testing
from genrpc import aio

MODULE = "crawl"  # this file, as the nodes import it
SECONDS_PER_PAGE = 10.0

# ------------------------------------------------------------------ what the nodes run


async def fetch(url: str) -> tuple[str, str, list[str]]:
    """Who fetched the page, its title, and the links to pages of the same site."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port or (443 if tls else 80), ssl=tls or None
    )
    try:
        writer.write(f"GET {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        page = (await reader.read()).decode(errors="replace")
    finally:  # also when the caller has cancelled
        writer.close()
    title = re.search(r"<title>(.*?)</title>", page, re.S)
    links = {urljoin(url, link) for link in re.findall(r'href="([^"#?]+)"', page)}
    same_site = sorted(link for link in links if urlsplit(link).netloc == parts.netloc)
    return genrpc.node(), title[1].strip() if title else "", same_site


# ------------------------------------------------------------------ the crawler


async def crawl(start: str, nodes: list[str], limit: int) -> tuple[int, int]:
    """Fetch pages until `limit` are known; how many were, and how many requests were cancelled."""
    known, tasks, fetched = {start}, {}, 0

    def ask(url: str) -> None:
        node = nodes[len(known) % len(nodes)]
        tasks[asyncio.create_task(aio.call(node, MODULE, "fetch", [url], SECONDS_PER_PAGE))] = url

    ask(start)
    while tasks and fetched < limit:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            path = urlsplit(tasks.pop(task)).path
            try:
                node, title, links = task.result()
            except genrpc.CallError as error:
                print(f"{path:14} failed: {error.reason}")
                continue
            fetched += 1
            print(f"{path:14} title: {title:17} from {node.partition('-')[0]}")
            for link in links:
                if link not in known:
                    known.add(link)
                    ask(link)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return fetched, len(tasks)


# ------------------------------------------------------------------ a site to crawl


class Site:
    """Twelve pages, and one that never comes."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()  # a client has given up the page that never comes

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readline()).split()[1].decode()
        if path == "/slow":
            await reader.read()  # ends when the client closes
            self.hung_up.set()
        else:
            links = "".join(f'<a href="/page{n}">' for n in range(1, 12)) + '<a href="/slow">'
            title = path.strip("/").replace("page", "Page ") or "Home"
            writer.write(f"HTTP/1.0 200 OK\r\n\r\n<title>{title}</title>{links}".encode())
        writer.close()


async def main(nodes: list[str]) -> None:
    if sys.argv[1:]:
        limit = int(sys.argv[2]) if sys.argv[2:] else 20
        fetched, cancelled = await crawl(sys.argv[1], nodes, limit)
        print(f"{fetched} pages; {cancelled} requests were cancelled")
        return
    site = Site()
    async with await asyncio.start_server(site.answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        fetched, cancelled = await crawl(f"http://127.0.0.1:{port}/", nodes, 12)
        await asyncio.wait_for(site.hung_up.wait(), 10)
        print(f"{fetched} pages; {cancelled} request was cancelled, which the site saw")


if __name__ == "__main__":
    with genrpc.testing.cluster(3) as cluster:
        asyncio.run(main(cluster.names))
