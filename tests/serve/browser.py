"""Chromium without a window, driven over the DevTools protocol."""

import asyncio
import itertools
import json
import subprocess
from contextlib import asynccontextmanager

import aiohttp

SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")


class Tab:
    """A page; what it logs as errors is in `errors`."""

    def __init__(self, socket):
        self.errors, self._socket, self._numbers = [], socket, itertools.count(1)

    async def command(self, method, **parameters):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self._note(message["params"])

    def _note(self, told):
        entry = told.get("entry", {"level": "error", "source": "exception", "text": str(told)})
        if entry["level"] == "error" and entry["source"] != "network":
            self.errors.append(entry["text"])

    async def open(self, url):
        for domain in ("Log", "Runtime", "Page", "DOM"):
            await self.command(f"{domain}.enable")
        await self.command("Page.navigate", url=url)

    async def value(self, expression):
        answer = await self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, expression):
        """Wait until a condition holds; the test's time limit ends it otherwise."""
        while not await self.value(expression):
            await asyncio.sleep(0.05)

    async def choose(self, selector, paths):
        """Choose files in an input as a person does."""
        root = (await self.command("DOM.getDocument"))["root"]["nodeId"]
        found = await self.command("DOM.querySelector", nodeId=root, selector=selector)
        files = [str(path) for path in paths]
        await self.command("DOM.setFileInputFiles", nodeId=found["nodeId"], files=files)


@asynccontextmanager
async def chromium(profile):
    """Start one with an empty profile and give its tab."""
    command = ["chromium", *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(profile, process)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                tabs = await response.json(content_type=None)
            (url,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        process.terminate()
        process.wait()


async def _port(profile, process):
    """Wait for the file in which Chromium writes the port it listens on."""
    file = profile / "DevToolsActivePort"
    while not (file.exists() and file.read_text().count("\n")):
        assert process.poll() is None, "Chromium ended"
        await asyncio.sleep(0.05)
    return int(file.read_text().splitlines()[0])
