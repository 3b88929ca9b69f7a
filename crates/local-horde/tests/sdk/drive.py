"""Drives a Horde on this machine with horde-sdk, as a client and as a worker, for all three kinds of work.

The server's address comes in AI_HORDE_URL (ending in `/api/`). Every answer goes through the SDK's own models, so a
field of the wrong shape ends this script. Prints one line per part that held and exits 0 when all did.
"""

import base64
import io
import urllib.request

from horde_sdk.ai_horde_api.ai_horde_clients import AIHordeAPIManualClient
from horde_sdk.ai_horde_api.apimodels import (
    AIHordeHeartbeatRequest,
    AIHordeHeartbeatResponse,
    AlchemyAsyncRequest,
    AlchemyAsyncResponse,
    AlchemyJobPopResponse,
    AlchemyJobSubmitRequest,
    AlchemyJobSubmitResponse,
    AlchemyPopRequest,
    AlchemyStatusRequest,
    AlchemyStatusResponse,
    AllWorkersDetailsRequest,
    AllWorkersDetailsResponse,
    DeleteTextGenerateRequest,
    FindUserRequest,
    HordePerformanceRequest,
    HordePerformanceResponse,
    HordeStatusModelsAllRequest,
    HordeStatusModelsAllResponse,
    ImageGenerateCheckRequest,
    ImageGenerateCheckResponse,
    ImageGenerateAsyncRequest,
    ImageGenerateAsyncResponse,
    ImageGenerateJobPopRequest,
    ImageGenerateJobPopResponse,
    ImageGenerateStatusRequest,
    ImageGenerateStatusResponse,
    ImageGenerationJobSubmitRequest,
    JobSubmitResponse,
    ModifyWorkerRequest,
    ModifyWorkerResponse,
    NewsRequest,
    NewsResponse,
    SingleWorkerDetailsResponse,
    SingleWorkerNameDetailsRequest,
    TextGenerateAsyncRequest,
    TextGenerateAsyncResponse,
    TextGenerateJobPopRequest,
    TextGenerateJobPopResponse,
    TextGenerateStatusRequest,
    TextGenerateStatusResponse,
    TextGenerationJobSubmitRequest,
    UserDetailsResponse,
)
from horde_sdk.generic_api.apimodels import RequestErrorResponse
from PIL import Image

CLIENT_KEY = "local-client-key-00000"
WORKER_KEY = "local-worker-key-00000"
AGENT = "AI Horde Worker reGen:13.0.0:https://example.invalid"

client = AIHordeAPIManualClient()


def call(request, response_type):
    answer = client.submit_request(request, response_type)
    assert not isinstance(answer, RequestErrorResponse), f"{type(request).__name__} was refused: {answer}"
    assert isinstance(answer, response_type), f"{type(request).__name__} brought {type(answer).__name__}"
    return answer


def refused(request, response_type):
    """The SDK returns the server's refusals as values."""
    answer = client.submit_request(request, response_type)
    assert isinstance(answer, RequestErrorResponse), f"{type(request).__name__} was taken: {answer}"
    return answer


def webp(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "WEBP")
    return buffer.getvalue()


def put(address, content):
    request = urllib.request.Request(str(address), data=content, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def get(address):
    with urllib.request.urlopen(str(address), timeout=10) as answer:
        return answer.read()


def text():
    filed = call(
        TextGenerateAsyncRequest(apikey=CLIENT_KEY, prompt="Once upon a time", models=["koboldcpp/test-8B"], params={"max_length": 40, "max_context_length": 1024}),
        TextGenerateAsyncResponse,
    )
    pop = TextGenerateJobPopRequest(apikey=WORKER_KEY, name="sdk scribe", models=["koboldcpp/test-8B"], bridge_agent=AGENT, max_length=512, max_context_length=4096)
    job = call(pop, TextGenerateJobPopResponse)
    assert job.payload.prompt == "Once upon a time" and job.ttl == 150
    submit = TextGenerationJobSubmitRequest(apikey=WORKER_KEY, id=job.ids[0], generation=" there was a fox.", state="ok")
    assert call(submit, JobSubmitResponse).reward > 0
    assert refused(submit, JobSubmitResponse).rc == "DuplicateGen"
    assert call(pop, TextGenerateJobPopResponse).id_ is None
    status = call(TextGenerateStatusRequest(id=filed.id_), TextGenerateStatusResponse)
    assert status.done and status.generations[0].text == " there was a fox."
    print("text held")


def image():
    source = base64.b64encode(webp("red")).decode()
    filed = call(
        ImageGenerateAsyncRequest(
            apikey=CLIENT_KEY, prompt="a hill ### fog", models=["Deliberate"], source_image=source, source_processing="img2img",
            params={"n": 2, "steps": 8, "width": 256, "height": 256, "sampler_name": "k_euler", "denoising_strength": 0.5, "seed": "17"},
        ),
        ImageGenerateAsyncResponse,
    )
    pop = ImageGenerateJobPopRequest(
        apikey=WORKER_KEY, name="sdk dreamer", models=["Deliberate"], bridge_agent=AGENT, amount=2, max_pixels=1048576, nsfw=True, threads=1,
        allow_img2img=True, allow_painting=True, allow_unsafe_ipaddr=True, allow_post_processing=True, allow_controlnet=False, allow_lora=True,
    )
    job = call(pop, ImageGenerateJobPopResponse)
    assert len(job.ids) == 2 and len(job.r2_uploads) == 2 and job.payload.seed == "17" and job.payload.ddim_steps == 8
    assert Image.open(io.BytesIO(get(job.source_image))).getpixel((5, 5))[0] > 200
    for index, (generation, address) in enumerate(zip(job.ids, job.r2_uploads)):
        put(address, webp("blue"))
        metadata = [{"type": "batch_index", "value": "see_ref", "ref": str(index)}]
        submit = ImageGenerationJobSubmitRequest(apikey=WORKER_KEY, id=generation, generation="R2", state="ok", seed=17, gen_metadata=metadata)
        assert call(submit, JobSubmitResponse).reward > 0
    check = call(ImageGenerateCheckRequest(id=filed.id_), ImageGenerateCheckResponse)
    assert check.done and check.finished == 2 and check.waiting == 0
    status = call(ImageGenerateStatusRequest(id=filed.id_), ImageGenerateStatusResponse)
    assert status.done and len(status.generations) == 2
    assert Image.open(io.BytesIO(get(status.generations[0].img))).convert("RGB").getpixel((5, 5))[2] > 200
    print("image held")


def alchemy():
    source = base64.b64encode(webp("green")).decode()
    forms = [{"name": "caption"}, {"name": "nsfw"}, {"name": "RealESRGAN_x4plus"}]
    filed = call(AlchemyAsyncRequest(apikey=CLIENT_KEY, source_image=source, forms=forms), AlchemyAsyncResponse)
    pop = AlchemyPopRequest(apikey=WORKER_KEY, name="sdk alchemist", forms=["caption", "nsfw", "RealESRGAN_x4plus"], amount=3, bridge_agent=AGENT, priority_usernames=[])
    job = call(pop, AlchemyJobPopResponse)
    assert len(job.forms) == 3
    results = {"caption": {"caption": "a green square"}, "nsfw": {"nsfw": False}, "RealESRGAN_x4plus": {"RealESRGAN_x4plus": "R2"}}
    for form in job.forms:
        name = str(getattr(form.form, "value", form.form))
        if form.r2_upload:
            put(form.r2_upload, webp("green"))
        submit = AlchemyJobSubmitRequest(apikey=WORKER_KEY, id=form.id_, result=results[name], state="ok")
        assert call(submit, AlchemyJobSubmitResponse).reward > 0
    status = call(AlchemyStatusRequest(id=filed.id_), AlchemyStatusResponse)
    assert len(status.forms) == 3 and all(form.state == "done" for form in status.forms)
    assert refused(submit, AlchemyJobSubmitResponse).rc == "DuplicateGen"
    print("alchemy held")


def around():
    """What workers and clients read beside the jobs, and a worker that its owner sends into maintenance."""
    user = call(FindUserRequest(apikey=WORKER_KEY), UserDetailsResponse)
    assert user.username == "worker#1" and user.worker_count == 3
    worker = call(SingleWorkerNameDetailsRequest(worker_name="sdk dreamer"), SingleWorkerDetailsResponse)
    assert worker.online and worker.models == ["Deliberate"] and worker.bridge_agent == AGENT and worker.requests_fulfilled == 2
    assert len(call(AllWorkersDetailsRequest(), AllWorkersDetailsResponse).root) == 3
    assert call(HordePerformanceRequest(), HordePerformanceResponse).worker_count == 1
    assert [model.name for model in call(HordeStatusModelsAllRequest(), HordeStatusModelsAllResponse).root] == ["Deliberate"]
    assert call(AIHordeHeartbeatRequest(), AIHordeHeartbeatResponse).version
    call(NewsRequest(), NewsResponse)
    scribe = call(SingleWorkerNameDetailsRequest(worker_name="sdk scribe"), SingleWorkerDetailsResponse)
    rest = ModifyWorkerRequest(apikey=WORKER_KEY, worker_id=scribe.id_, maintenance=True, maintenance_msg="back soon")
    assert call(rest, ModifyWorkerResponse).maintenance
    pop = TextGenerateJobPopRequest(apikey=WORKER_KEY, name="sdk scribe", models=["koboldcpp/test-8B"], bridge_agent=AGENT)
    refusal = refused(pop, TextGenerateJobPopResponse)
    assert refusal.rc == "WorkerMaintenance" and refusal.message == "back soon"
    call(ModifyWorkerRequest(apikey=WORKER_KEY, worker_id=scribe.id_, maintenance=False), ModifyWorkerResponse)
    filed = call(TextGenerateAsyncRequest(apikey=CLIENT_KEY, prompt="Never mind", models=["koboldcpp/test-8B"]), TextGenerateAsyncResponse)
    call(DeleteTextGenerateRequest(id=filed.id_), TextGenerateStatusResponse)
    assert call(pop, TextGenerateJobPopResponse).id_ is None
    print("around held")


text()
image()
alchemy()
around()
