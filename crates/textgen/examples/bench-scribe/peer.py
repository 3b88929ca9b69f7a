"""llama.cpp as the cyllama package drives it, one job at a time, greedily, on one thread: `python3 peer.py MODEL.gguf CONTEXT FLASH`
(FLASH: -1 leaves flash attention to llama.cpp, 0 is without).

Each line of standard input is a job {"prompt", "tokens", "margin_at"}; each line of standard output its answer: the text of every
token written, the CPU seconds it took, and how far the best logit stood over the second at the token "margin_at", if one is given.
"""

import json
import sys
import time

from cyllama.llama import llama_cpp as peer

peer.disable_logging()
peer.ggml_backend_load_all()
model_params = peer.LlamaModelParams()
model_params.n_gpu_layers = 0
model = peer.LlamaModel(sys.argv[1], model_params)
vocab = model.get_vocab()
params = peer.LlamaContextParams()
params.n_ctx = int(sys.argv[2])
params.n_batch = params.n_ctx
params.n_threads = params.n_threads_batch = 1
params.flash_attn_type = int(sys.argv[3])
context = peer.LlamaContext(model, params)


def piece(token):
    try:
        return vocab.token_to_piece(token, special=False)
    except UnicodeDecodeError:
        return "\ufffd"


def margin(best):
    # The package's reader of logits is broken: weigh the best token down until another one wins.
    low, high = 0.0, 16.0
    for _ in range(20):
        bias = (low + high) / 2
        sampler = peer.LlamaSampler()
        sampler.add_logit_bias(vocab.n_vocab, [(best, -bias)])
        sampler.add_greedy()
        low, high = (low, bias) if sampler.sample(context, -1) != best else (bias, high)
    return high


def answer(job):
    context.kv_cache_clear()
    start = time.process_time()
    tokens = vocab.tokenize(job["prompt"], add_special=True, parse_special=True)
    sampler = peer.LlamaSampler()
    sampler.add_greedy()
    context.decode(peer.llama_batch_get_one(tokens, 0))
    place, written, apart = len(tokens), [], None
    for number in range(job["tokens"]):
        token = sampler.sample(context, -1)
        if number == job.get("margin_at"):
            apart = margin(token)
        written.append("" if vocab.is_eog(token) else piece(token))
        if vocab.is_eog(token) or len(written) == job["tokens"]:
            break
        context.decode(peer.llama_batch_get_one([token], place))
        place += 1
    return {"pieces": written, "cpu_seconds": time.process_time() - start, "margin": apart}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
