"""The client code of the README: run it beside `lorayard up`, with the shipped adapters added."""

import lorayard

with lorayard.Client.from_env() as client:  # LORAYARD_REDIS_URL
    job = client.submit("hello>", adapter="upper", max_tokens=16)
    print(job.result(timeout=30).output)

    jobs = client.submit_many({"prompt": f"{word}>", "adapter": "reverse"} for word in ("pot", "star"))
    for job in lorayard.as_completed(jobs, timeout=30):
        print(job.id, job.result().output)
