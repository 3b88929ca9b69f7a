"""llama.cpp's own server with parallel slots, as the xllamacpp package embeds it, on one thread: `python3 server.py MODEL.gguf CONTEXT SLOTS`.

Each line of standard input is a round {"prompts", "tokens", "ignore_eos"}; each line of standard output its answer: the
number of tokens written and the CPU seconds the round took. All prompts of a round are handed in at once.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import xllamacpp

context, slots = int(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_parallel = slots
params.n_ctx = context * slots
params.n_batch = params.n_ubatch = context
params.n_gpu_layers = 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)


def answer(round):
    def one(prompt):
        return server.handle_completions(
            {"prompt": prompt, "n_predict": round["tokens"], "temperature": 0, "ignore_eos": round["ignore_eos"]}
        )

    start = time.process_time()
    with ThreadPoolExecutor(slots) as pool:
        answers = list(pool.map(one, round["prompts"]))
    return {
        "tokens": sum(answer["usage"]["completion_tokens"] for answer in answers),
        "cpu_seconds": time.process_time() - start,
    }


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
