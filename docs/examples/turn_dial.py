"""Turn the dial of a running llama.cpp server once around: turn_dial.py ADDRESS PROMPT."""

import json
import math
import sys
from urllib.request import Request, urlopen

address, prompt = sys.argv[1:]
for angle_deg in range(0, 361, 45):
    angle = math.radians(angle_deg)
    scales = [{"id": 0, "scale": math.cos(angle) - 1}, {"id": 1, "scale": math.sin(angle)}]
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 32, "temperature": 0}
    body |= {"lora": scales, "cache_prompt": False}  # never keys and values of another angle
    headers = {"Content-Type": "application/json"}
    asked = Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(asked) as answer:
        print(f"{angle_deg:3}°", json.load(answer)["choices"][0]["message"]["content"])
