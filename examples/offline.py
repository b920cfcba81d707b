"""The engine alone, without any broker: run it from the repository's root."""

from workers.engine import EngineConfig, LLMEngine, LoRARequest, SamplingParams

engine = LLMEngine(EngineConfig(model="examples/tiny/base", enable_lora=True, max_loras=4, max_lora_rank=16))
outputs = engine.generate(
    ["hello>", "hello>"],
    SamplingParams(max_tokens=16, temperature=0.0),
    lora_request=[LoRARequest("upper", 1, "examples/tiny/adapters/upper"), None],
)
print([output.outputs[0].text for output in outputs])
