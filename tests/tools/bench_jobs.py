"""Jobs an hour of scribe beside a serial loop, both against `local-horde` with 300 ms there and back: `bench_jobs.py PROGRAMS MODEL.gguf`.

PROGRAMS is the folder with `scribe` and `local-horde`. The serial loop takes one job, writes it with llama.cpp (the xllamacpp
package, all cores) and hands it in before it takes the next. Both serve the same requests; the time runs from the first pop
to the last result, as the Horde's book has it.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

PROGRAMS, MODEL = sys.argv[1:3]
# As scribe does: threads that wait do not spin, which would slow both where something else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
NAME, KEY, JOBS, TOKENS = "koboldcpp/SmolLM2-135M-Instruct", "local-worker-key-00000", 16, 32
ONE_WAY_SECONDS = 0.15


async def late(reader, writer):
    """Passes everything on in order, each piece ONE_WAY_SECONDS after it came."""
    pieces = asyncio.Queue()

    async def write():
        while (piece := await pieces.get())[1]:
            await asyncio.sleep(piece[0] + ONE_WAY_SECONDS - time.monotonic())
            writer.write(piece[1])
            await writer.drain()
        writer.close()

    writing = asyncio.create_task(write())
    try:
        while data := await reader.read(65536):
            pieces.put_nowait((time.monotonic(), data))
    except ConnectionError:
        pass
    pieces.put_nowait((0, b""))
    await asyncio.gather(writing, return_exceptions=True)


def far_away(port):
    """Port of a way to `port` that takes its time."""
    loop, started, found = asyncio.new_event_loop(), threading.Event(), []

    async def accept(reader, writer):
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(late(reader, there_writer), late(there_reader, writer))

    async def serve():
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        found.append(server.sockets[0].getsockname()[1])
        started.set()
        await server.serve_forever()

    threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True).start()
    started.wait()
    return found[0]


def scribe(url, state, over):
    environment = dict(os.environ, HORDE_URL=url, HORDE_API_KEY=KEY, HORDE_WORKER_NAME="bench", HORDE_STATE_DIR=state)
    environment["XDG_CONFIG_HOME"] = os.path.join(state, "config")
    with open(os.path.join(state, "log"), "w") as log:
        worker = subprocess.Popen([f"{PROGRAMS}/scribe", "run"], env=environment, stdout=log, stderr=log)
    while not over() and worker.poll() is None:
        time.sleep(0.5)
    worker.send_signal(signal.SIGTERM)
    if worker.wait(60) != 0:
        sys.exit(f"scribe ended with {worker.returncode}:\n" + open(os.path.join(state, "log")).read()[-2000:])


def serial(url, state, over):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = MODEL
    params.n_parallel, params.n_ctx, params.n_gpu_layers = 1, 2048, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    server = xllamacpp.Server(params)

    def post(path, body):
        headers = {"apikey": KEY, "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v2/{path}", json.dumps(body).encode(), headers)) as answer:
            return json.load(answer)

    offer = {"name": "bench", "models": [NAME], "max_length": 128, "max_context_length": 2048, "bridge_agent": "bench:1:local"}
    while not over():
        job = post("generate/text/pop", offer)
        if job.get("id"):
            asked = {"prompt": job["payload"]["prompt"], "n_predict": job["payload"]["max_length"], "temperature": 0}
            text = server.handle_completions(asked)["choices"][0]["text"]
            post("generate/text/submit", {"id": job["id"], "generation": text})


def jobs_an_hour(worker):
    with tempfile.TemporaryDirectory() as state:
        requests = os.path.join(state, "requests.json")
        params = {"max_length": TOKENS, "max_context_length": 1024, "temperature": 0.0, "top_k": 1}
        with open(requests, "w") as file:
            prompts = [f"Story {n * 31}. The player walks into room number {n * 7 + 3}, looks around and" for n in range(JOBS)]
            json.dump([{"route": "generate/text/async", "body": {"prompt": p, "params": params, "models": [NAME]}} for p in prompts], file)
        command = [f"{PROGRAMS}/local-horde", "--port", "0", "--no-rate-limits", "--file", requests]
        horde = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            line = next(line for line in horde.stdout if line.startswith("listening on"))
            port = int(line.split("http://127.0.0.1:")[1].split("/")[0])

            def book():
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/local/ledger") as answer:
                    return json.load(answer)

            deadline = time.monotonic() + 120
            worker(f"http://127.0.0.1:{far_away(port)}/api", state, lambda: book()["summary"]["accepted"] >= JOBS or time.monotonic() > deadline)
            generations, accepted = book()["generations"].values(), book()["summary"]["accepted"]
        finally:
            horde.terminate()
            horde.wait()
    done = [entry for entry in generations if entry.get("seconds") is not None]
    if accepted < JOBS or len(done) < JOBS:
        sys.exit(f"only {accepted} of {JOBS} jobs were done")
    span = max(e["popped"] + e["seconds"] for e in done) - min(e["popped"] for e in done)
    return JOBS * 3600 / span


ours, loop = jobs_an_hour(scribe), jobs_an_hour(serial)
print(f"scribe {ours:.0f} jobs/h, a serial loop {loop:.0f} jobs/h: {ours / loop:.2f} times")
