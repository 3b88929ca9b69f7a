"""Holds scribe's chat jobs against horde-sdk's own models: `chat_sdk.py PROGRAMS MODELS`.

PROGRAMS is the folder with `scribe` and `local-horde`, MODELS the models directory. The SDK (an AGPL package, used as it is
installed) goes into an environment beside the other caches, for which Python 3.12 or newer is looked for. A scribe with
`chat = true` serves requests of every kind from a Horde on loopback that records each pop and submit; then every recorded
body has to be what the SDK's builders make of the same values, and every job what the SDK can read. Prints one line for each
kind of body and exits 0 when all held.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

SDK = "horde-sdk==0.33.3"
NAME, CLIENT, WORKER = "koboldcpp/SmolLM2-135M-Instruct", "local-client-key-00000", "local-worker-key-00000"
PATIENCE_SECONDS = 300
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Rome", "Paris"]}}, "required": ["city"], "additionalProperties": False},
    },
}
ESSAY = {
    "type": "function",
    "function": {
        "name": "essay",
        "parameters": {"type": "object", "properties": {"text": {"type": "string", "minLength": 2000}}, "required": ["text"]},
    },
}
ANSWER = {"type": "object", "properties": {"capital": {"type": "string"}, "sure": {"type": "boolean"}}, "required": ["capital", "sure"], "additionalProperties": False}


def user(text):
    return [{"role": "user", "content": text}]


def schema(body, strict=True):
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": strict, "schema": body}}


GREEDY = {"temperature": 0, "top_k": 1, "max_tokens": 48}
# Name, request, and why it has to be handed back, where it has to.
REQUESTS = [
    ("plain", {"messages": user("What is the capital of France?"), "seed": 7, "stop": "\n\n", **GREEDY}, None),
    ("penalties", {"messages": [{"role": "system", "content": "Be brief."}, *user("Name a fruit.")], "presence_penalty": 0.5, "max_tokens": 16}, None),
    ("cut at its length", {"messages": user("Tell me a long story."), **GREEDY, "max_tokens": 16}, None),
    ("a call", {"messages": user("What is the weather in Rome?"), "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, **GREEDY}, None),
    ("one function named", {"messages": user("Weather in Rome?"), "tools": [ESSAY, WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}, **GREEDY}, None),
    ("a call if it likes", {"messages": user("Say hello."), "tools": [WEATHER], **GREEDY}, None),
    ("no call", {"messages": user("Say hello."), "tools": [WEATHER], "tool_choice": "none", **GREEDY}, None),
    ("JSON by schema", {"messages": user("What is the capital of Italy?"), "response_format": schema(ANSWER), **GREEDY}, None),
    ("any JSON", {"messages": user("Describe a cat as JSON."), "response_format": {"type": "json_object"}, **GREEDY}, None),
    (
        "after a call",
        {
            "messages": [
                *user("What is the weather in Rome?"),
                {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}]},
                {"role": "tool", "tool_call_id": "call_1", "content": "Sunny, 25 degrees."},
            ],
            **GREEDY,
        },
        None,
    ),
    ("too long", {"messages": user("Sing. " * 400), "max_context_length": 128, **GREEDY, "max_tokens": 16}, "prompt_overflow"),
    ("no such form", {"messages": user("Hello."), "response_format": schema({"$ref": "#/$defs/missing"}), **GREEDY}, "unbuildable_grammar"),
    ("no room for the call", {"messages": user("Write."), "tools": [ESSAY], "tool_choice": "required", **GREEDY}, "tool_violation"),
]


def environment():
    """Python with the SDK, made once."""
    cache = pathlib.Path(os.environ.get("HORDE_WORKERS_CACHE") or pathlib.Path.home() / ".cache/horde-workers")
    place = cache / "venvs/chat-sdk"
    python, ready = place / "bin/python", place / "ready.txt"
    if ready.exists() and ready.read_text() == SDK:
        return python
    known = sorted(pathlib.Path.home().glob(".pyenv/versions/3.1[2-9]*/bin/python3"))
    for interpreter in [shutil.which(f"python3.{minor}") for minor in (12, 13, 14)] + [str(path) for path in known]:
        if interpreter and subprocess.run([interpreter, "-m", "venv", "--clear", place], stderr=subprocess.DEVNULL).returncode == 0:
            break
    else:
        sys.exit("error: horde-sdk needs Python 3.12 or newer with `venv`, and none was found\nhint: apt-get install python3.12-venv, or pyenv install 3.12")
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", SDK], check=True)
    ready.write_text(SDK)
    return python


def call(base, path, body=None, method=None):
    headers = {"apikey": CLIENT, "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{base}/v2/{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def run(programs, models, folder):
    """Serves every request once; returns what was recorded and each request's last status."""
    record = folder / "record.jsonl"
    horde = subprocess.Popen([programs / "local-horde", "--no-rate-limits", "--record", record], stdout=subprocess.PIPE, text=True)
    base = re.search(r"http://\S+", horde.stdout.readline()).group()
    config = folder / "config/horde-workers"
    config.mkdir(parents=True)
    (config / "scribe.toml").write_text("[scribe]\nchat = true\n[scribe.llama]\nslots = 2\ncontext_tokens = 1024\n")
    settings = {
        "HORDE_URL": base, "HORDE_API_KEY": WORKER, "HORDE_WORKER_NAME": "chat of scribe", "HORDE_STATE_DIR": folder / "state",
        "HORDE_WORKERS_MODELS": models, "XDG_CONFIG_HOME": folder / "config",
    }
    filed = [(name, call(base, "generate/chat/async", {"models": [NAME], **body})["id"], reason) for name, body, reason in REQUESTS]
    prompt = call(base, "generate/text/async", {"prompt": "One, two,", "models": [NAME], "params": {"max_length": 16, "max_context_length": 512}})["id"]
    scribe = subprocess.Popen([programs / "scribe", "run"], env={**os.environ, **{key: str(value) for key, value in settings.items()}}, stdout=subprocess.DEVNULL)
    statuses, end = {}, time.monotonic() + PATIENCE_SECONDS
    try:
        while len(statuses) <= len(filed):
            assert scribe.poll() is None, "scribe ended by itself"
            waiting = {"prompt", *(name for name, *_ in filed)} - statuses.keys()
            assert time.monotonic() < end, f"not done in {PATIENCE_SECONDS} s: {waiting}"
            for name, request, reason in filed:
                status = call(base, f"generate/chat/status/{request}")
                if status["done"] or status["fault_reasons"]:
                    statuses.setdefault(name, status)
                if status["fault_reasons"]:
                    # Nobody else could do it either.
                    call(base, f"generate/text/status/{request}", method="DELETE")
            status = call(base, f"generate/text/status/{prompt}")
            if status["done"]:
                statuses["prompt"] = status
            time.sleep(0.5)
    finally:
        for program in (scribe, horde):
            program.send_signal(signal.SIGTERM)
            program.wait(60)
    return [json.loads(line) for line in record.read_text().splitlines()], statuses


def hold(recorded, statuses):
    """Every body against the SDK."""
    from horde_sdk.ai_horde_api.apimodels import TextGenerateJobPopRequest, TextGenerateJobPopResponse, TextGenerationJobSubmitRequest
    from horde_sdk.generation_parameters.text.chat_policy import ChatWorkerLimits, parse_chat_declaration
    from horde_sdk.worker.chat_declaration import (
        ChatFaultReason, ChatFinishReason, ChatImageTransport, ChatJobPayload, ChatUsage, ChatWorkerDeclaration, build_chat_fault_submit, build_chat_reply_submit,
    )

    chat_keys = {"chat_jobs", "prompt_jobs", "model_id", "chat_features", "chat_limits", "image_transports"}
    counts = dict.fromkeys(["pops", "chat jobs", "prompt jobs", "replies", "faults", "texts"], 0)
    jobs, declaration = {}, None
    for entry in recorded:
        body, answer = entry["body"], entry["answer"]
        assert entry["status"] == 200, f"the server refused `{entry['route']}`: {answer}"
        if entry["route"].endswith("/pop"):
            TextGenerateJobPopRequest(apikey=WORKER, **{key: value for key, value in body.items() if key not in chat_keys})
            features = [parse_chat_declaration(word) for word in body["chat_features"]]
            assert None not in features, f"not known to the SDK: {body['chat_features']}"
            declaration = ChatWorkerDeclaration(
                chat_jobs=body["chat_jobs"], prompt_jobs=body["prompt_jobs"], model_id=body["model_id"], features=frozenset(features),
                limits=ChatWorkerLimits(**body["chat_limits"]), image_transports=frozenset(map(ChatImageTransport, body.get("image_transports", []))),
            )
            sent = {"image_transports": [], **{key: value for key, value in body.items() if key in chat_keys}}
            assert declaration.to_pop_fields() == sent, (declaration.to_pop_fields(), sent)
            assert body["model_id"] in body["models"]
            counts["pops"] += 1
            if answer.get("chat"):
                job = ChatJobPayload.from_pop(answer)
                assert not job.undeclared_features(declaration), job.undeclared_features(declaration)
                jobs[job.job_id] = job
                counts["chat jobs"] += 1
            elif answer["id"]:
                TextGenerateJobPopResponse(**answer)
                counts["prompt jobs"] += 1
        elif body["id"] not in jobs:
            TextGenerationJobSubmitRequest(apikey=WORKER, **body)
            counts["texts"] += 1
        elif body.get("state") == "faulted":
            built = build_chat_fault_submit(body["id"], jobs[body["id"]].model, ChatFaultReason(body["fault_reason"]))
            assert built == body, (built, body)
            counts["faults"] += 1
        else:
            usage = ChatUsage(**{key: body[key] for key in ("prompt_tokens", "completion_tokens", "reasoning_tokens") if key in body})
            built = build_chat_reply_submit(
                body["id"], jobs[body["id"]].model, body["message"], ChatFinishReason(body["finish_reason"]), usage, native_finish_reason=body.get("native_finish_reason"),
            )
            assert built == body, (built, body)
            counts["replies"] += 1
    for name, _, reason in REQUESTS:
        status = statuses[name]
        if reason:
            assert reason in status["fault_reasons"], f"{name}: {status}"
        else:
            assert len(status["generations"]) == 1 and not status["fault_reasons"], f"{name}: {status}"
    for name, count in counts.items():
        assert count, f"no {name} were recorded"
        print(f"{count:4} {name} as horde-sdk has them")


if __name__ == "__main__":
    if "--held" not in sys.argv:
        os.execv(python := environment(), [python, __file__, "--held", *sys.argv[1:]])
    os.environ.setdefault("LOGFIRE_IGNORE_NO_CONFIG", "1")
    programs, models = map(pathlib.Path, sys.argv[2:4])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AIWORKER_CACHE_HOME"] = folder
        hold(*run(programs.absolute(), models.absolute(), pathlib.Path(folder)))
