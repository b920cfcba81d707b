"""Says what came of every job of a soak, from what others wrote: it imports nothing of Lorayard's.

It reads the ledger by SQL, Redis, `/proc`, and these files of the soak's folder, JSON lines with a time `at`:

- `producer-*.jsonl`: `intent` and `receipt` of each submission; what its producer was `told` (or `untold`)
- `receiver-*.jsonl`: each `delivery` of a webhook, with its headers and its body in base64
- `faults.jsonl` and `hits.jsonl`: each `fault`, with `until` if it lasted
- `adapters.jsonl`: `adding` and `added` for each revision that became a name's current one
- `expected.json`: request -> adapter -> the right answer;  `secrets.json`: tenant -> webhook secret
"""

from tests.soak.audit.audit import audit
from tests.soak.audit.evidence import Source
from tests.soak.audit.verdict import Finding, Verdict

__all__ = ["Finding", "Source", "Verdict", "audit"]
