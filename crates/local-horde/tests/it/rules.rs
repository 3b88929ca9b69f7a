//! Rules measured on the real server, one a test.

use std::time::Duration;

use local_horde::{CLIENT_KEY, Fate, Horde, Settings, WORKER_KEY};
use serde_json::{Value, json};

fn horde() -> Horde {
    Horde::new(Settings::default())
}

fn file_text(horde: &Horde) -> String {
    horde
        .file(
            "generate/text/async",
            &json!({ "prompt": "Once", "params": { "max_length": 40 }, "models": ["koboldcpp/x-8B"] }),
        )
        .expect("filed")
}

fn pop_text(horde: &Horde) -> Result<Value, Value> {
    horde.call(
        "POST",
        "generate/text/pop",
        WORKER_KEY,
        &json!({ "name": "text worker", "models": ["koboldcpp/x-8B"], "bridge_agent": "scribe:1:u" }),
    )
}

fn submit_text(horde: &Horde, id: &Value, state: &str) -> Result<Value, Value> {
    horde.call(
        "POST",
        "generate/text/submit",
        WORKER_KEY,
        &json!({ "id": id, "generation": " there was", "state": state }),
    )
}

fn image(extra: Value) -> Value {
    let mut body = json!({ "prompt": "a hill", "r2": true, "params": { "width": 512, "height": 512, "steps": 20 } });
    for (key, value) in extra.as_object().expect("an object") {
        match (body.get_mut(key).and_then(Value::as_object_mut), value) {
            (Some(inner), Value::Object(more)) => inner.extend(more.clone()),
            _ => body[key] = value.clone(),
        }
    }
    body
}

fn pop_image(horde: &Horde, agent: &str, extra: Value) -> Result<Value, Value> {
    let mut body = json!({ "name": "image worker", "models": ["Deliberate", "AlbedoBase XL"], "bridge_agent": agent, "max_pixels": 1_048_576, "allow_lora": true });
    body.as_object_mut()
        .expect("an object")
        .extend(extra.as_object().expect("an object").clone());
    horde.call("POST", "generate/pop", WORKER_KEY, &body)
}

const REGEN: &str = "AI Horde Worker reGen:13.0.0:u";

#[tokio::test(start_paused = true)]
async fn a_text_job_goes_out_comes_back_once_and_pays() {
    let horde = horde();
    let request = file_text(&horde);
    let job = pop_text(&horde).expect("a pop");
    assert_eq!((&job["payload"]["prompt"], &job["ttl"]), (&json!("Once"), &json!(150)));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!(
        submit_text(&horde, &job["id"], "ok").expect("taken")["reward"]
            .as_f64()
            .is_some_and(|reward| reward > 0.0)
    );
    assert_eq!(
        submit_text(&horde, &job["id"], "ok").expect_err("twice")["rc"],
        "DuplicateGen"
    );
    let status = horde
        .call(
            "GET",
            &format!("generate/text/status/{request}"),
            CLIENT_KEY,
            &json!({}),
        )
        .expect("a status");
    assert_eq!(
        (&status["done"], &status["generations"][0]["text"]),
        (&json!(true), &json!(" there was"))
    );
    let summary = horde.state().ledger.summary();
    assert_eq!((summary.accepted, summary.open, summary.duplicates), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stale_job_is_taken_until_the_sweep_and_not_after() {
    let horde = horde();
    file_text(&horde);
    file_text(&horde);
    let (first, second) = (pop_text(&horde).expect("a job"), pop_text(&horde).expect("a job"));
    tokio::time::advance(Duration::from_secs(151)).await;
    horde.state().last_sweep_now();
    assert!(submit_text(&horde, &first["id"], "ok").is_ok());
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(
        submit_text(&horde, &second["id"], "ok").expect_err("late")["rc"],
        "AbortedGen"
    );
    assert_eq!(
        submit_text(&horde, &second["id"], "faulted").expect("faults repeat")["reward"],
        0.0
    );
    let id = second["id"].as_str().expect("an id");
    assert_eq!(horde.state().ledger.generations[id].fate, Fate::Expired);
    assert_eq!(
        pop_text(&horde).expect("it went back to the queue")["ids"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}

#[tokio::test(start_paused = true)]
async fn more_than_twenty_drops_an_hour_force_maintenance_where_own_jobs_are_still_served() {
    let horde = horde();
    for _ in 0..21 {
        file_text(&horde);
        let job = pop_text(&horde).expect("a job");
        submit_text(&horde, &job["id"], "faulted").expect("a fault");
    }
    for _ in 0..30 {
        file_text(&horde);
    }
    assert_eq!(pop_text(&horde).expect_err("maintenance")["rc"], "WorkerMaintenance");
    horde
        .call(
            "POST",
            "generate/text/async",
            WORKER_KEY,
            &json!({ "prompt": "Mine", "models": ["koboldcpp/x-8B"] }),
        )
        .expect("filed");
    assert_eq!(pop_text(&horde).expect("its own")["payload"]["prompt"], "Mine");
}

#[tokio::test(start_paused = true)]
async fn the_agent_decides_what_an_image_worker_is_given() {
    for (agent, body, given) in [
        (REGEN, image(json!({})), true),
        ("dreamer:1:u", image(json!({})), false),
        ("dreamer:1:u", image(json!({ "r2": false })), true),
        (REGEN, image(json!({ "params": { "hires_fix": true } })), true),
        (
            "dreamer:1:u",
            image(json!({ "r2": false, "params": { "hires_fix": true } })),
            false,
        ),
        (
            "AI Horde Worker reGen:2:u",
            image(json!({ "params": { "sampler_name": "lcm" } })),
            false,
        ),
        (REGEN, image(json!({ "params": { "sampler_name": "lcm" } })), true),
        (
            "AI Horde Worker reGen:12:u",
            image(json!({ "params": { "post_processing": ["4xNomos8kSC"] } })),
            false,
        ),
        (
            REGEN,
            image(json!({ "params": { "post_processing": ["4xNomos8kSC"] } })),
            true,
        ),
        (
            REGEN,
            image(json!({ "params": { "loras": [{ "name": "1", "model": 1.0 }] } })),
            true,
        ),
    ] {
        let horde = horde();
        horde.file("generate/async", &body).expect("filed");
        let job = pop_image(&horde, agent, json!({})).expect("a pop");
        assert_eq!(job["id"].is_string(), given, "{agent} {body}");
        assert!(job["payload"].is_object());
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_brings_as_many_ids_as_uploads_and_the_seed_in_text() {
    let horde = horde();
    let request = horde
        .file(
            "generate/async",
            &image(json!({ "params": { "n": 3, "seed": "-5", "width": 256, "height": 256 } })),
        )
        .expect("filed");
    let job = pop_image(&horde, REGEN, json!({ "amount": 3 })).expect("a job");
    assert_eq!(
        (
            job["ids"].as_array().map(Vec::len),
            job["r2_uploads"].as_array().map(Vec::len)
        ),
        (Some(3), Some(3))
    );
    assert_eq!(
        (&job["payload"]["seed"], &job["payload"]["n_iter"]),
        (&json!("13613"), &json!(3))
    );
    for id in job["ids"].as_array().expect("ids") {
        let metadata = json!([{ "type": "censorship", "value": "nsfw" }]);
        let body = json!({ "id": id, "generation": "R2", "state": "censored", "seed": 1, "gen_metadata": metadata });
        horde.call("POST", "generate/submit", WORKER_KEY, &body).expect("taken");
    }
    let status = horde
        .call("GET", &format!("generate/status/{request}"), CLIENT_KEY, &json!({}))
        .expect("a status");
    assert!(status["done"] == true && status["generations"][2]["censored"] == true);
}

#[tokio::test(start_paused = true)]
async fn null_wrong_types_and_bad_keys_are_refused_as_the_real_server_does() {
    let horde = horde();
    let refusal = pop_image(&horde, REGEN, json!({ "nsfw": null })).expect_err("null");
    assert!(refusal["errors"]["nsfw"].is_string() && refusal.get("rc").is_none());
    assert!(pop_image(&horde, REGEN, json!({ "nsfw": "false" })).expect_err("text")["errors"]["nsfw"].is_string());
    let unknown = horde
        .call(
            "POST",
            "generate/text/pop",
            "nobody",
            &json!({ "name": "someone", "models": ["m"] }),
        )
        .expect_err("a key");
    assert_eq!(unknown["rc"], "InvalidAPIKey");
    let anonymous = horde
        .call(
            "POST",
            "generate/text/pop",
            "0000000000",
            &json!({ "name": "someone", "models": ["m"] }),
        )
        .expect_err("anonymous");
    assert_eq!(anonymous["rc"], "AnonForbiddenWorker");
    file_text(&horde);
    let job = pop_text(&horde).expect("a job");
    let crash = horde
        .call(
            "POST",
            "generate/text/submit",
            "nobody",
            &json!({ "id": job["id"], "generation": "" }),
        )
        .expect_err("a crash");
    assert_eq!(crash["message"], "Internal Server Error");
    let conflict = pop_image(&horde, REGEN, json!({ "name": "text worker" })).expect_err("a conflict");
    assert_eq!(conflict["rc"], "PolymorphicNameConflict");
}

#[tokio::test(start_paused = true)]
async fn forms_of_one_request_are_jobs_of_their_own() {
    let horde = horde();
    let body = json!({ "source_image": "https://pictures.invalid/a.png", "forms": [{ "name": "caption" }, { "name": "RealESRGAN_x4plus" }, { "name": "nsfw" }] });
    let request = horde.file("interrogate/async", &body).expect("filed");
    let pop = |forms: Value| {
        horde.call(
            "POST",
            "interrogate/pop",
            WORKER_KEY,
            &json!({ "name": "alchemist", "forms": forms, "amount": 5 }),
        )
    };
    assert!(pop(json!(["caption", "annotation"])).expect_err("unknown form")["errors"]["forms.1"].is_string());
    let given = pop(json!(["caption", "nsfw"])).expect("forms");
    assert_eq!(given["forms"].as_array().map(Vec::len), Some(2));
    assert!(given["forms"][0].get("r2_upload").is_none());
    let submit = |id: &Value, body: Value| {
        horde.call(
            "POST",
            "interrogate/submit",
            WORKER_KEY,
            &json!({ "id": id, "result": body["result"], "state": body["state"] }),
        )
    };
    assert_eq!(
        submit(
            &given["forms"][0]["id"],
            json!({ "result": { "caption": "a wall" }, "state": "ok" })
        )
        .expect("taken")["reward"],
        1.0
    );
    assert_eq!(
        submit(&given["forms"][1]["id"], json!({ "result": {}, "state": "faulted" })).expect("taken")["reward"],
        0.0
    );
    let again = pop(json!(["caption", "nsfw", "RealESRGAN_x4plus"])).expect("forms");
    assert_eq!(
        again["forms"].as_array().map(Vec::len),
        Some(2),
        "the failed form came back, the done one did not"
    );
    let status = horde
        .call("GET", &format!("interrogate/status/{request}"), CLIENT_KEY, &json!({}))
        .expect("a status");
    assert_eq!(status["forms"][0]["result"]["caption"], "a wall");
}

#[tokio::test(start_paused = true)]
async fn a_paused_worker_gets_decoys_and_is_not_credited() {
    let horde = horde();
    file_text(&horde);
    pop_text(&horde).expect("a job");
    horde.state().workers.get_mut("text worker").expect("a worker").paused = true;
    let decoy = pop_text(&horde).expect("a decoy");
    assert!(decoy["id"].is_string());
    let before = horde.state().users[WORKER_KEY].kudos;
    submit_text(&horde, &decoy["id"], "ok").expect("taken");
    assert_eq!(horde.state().users[WORKER_KEY].kudos, before);
}

#[tokio::test(start_paused = true)]
async fn the_owner_sets_maintenance_and_the_worker_sees_the_text() {
    let horde = horde();
    pop_text(&horde).expect("nothing to do");
    let worker = horde
        .call("GET", "workers/name/text%20worker", WORKER_KEY, &json!({}))
        .expect("a worker");
    let path = format!("workers/{}", worker["id"].as_str().expect("an id"));
    let changed = horde
        .call(
            "PUT",
            &path,
            WORKER_KEY,
            &json!({ "maintenance": true, "maintenance_msg": "back soon" }),
        )
        .expect("changed");
    assert_eq!(changed["maintenance"], true);
    assert_eq!(pop_text(&horde).expect_err("maintenance")["message"], "back soon");
    assert_eq!(
        horde
            .call("PUT", &path, CLIENT_KEY, &json!({ "maintenance": false }))
            .expect_err("not theirs")["rc"],
        "NotOwner"
    );
}
