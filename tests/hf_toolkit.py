"""Our handler inside Hugging Face's own inference toolkit, with the versions of its container.

    git clone https://github.com/huggingface/huggingface-inference-toolkit
    python -m tests.hf_toolkit huggingface-inference-toolkit

Not run in CI: the toolkit is on no package index, and its container's packages are gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import httpx
import numpy as np

from llama_index_colqwen import ColQwenEmbedder, EndpointEmbedder, PDFPageReader
from llama_index_colqwen.nodes import page_from_node
from tests.checkpoints import build_checkpoint
from tests.services import wait_for

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "pdfs" / "tidal-sensors-paper.pdf"
QUERIES = ["total revenue of the third quarter?", "who signed it?"]

# What setup.py and the Dockerfile of the toolkit install, as far as it is imported; starlette is of their time.
CONTAINER = (
    "transformers[sentencepiece,vision]==4.51.3 huggingface_hub[hf_transfer]==0.30.2 sentence_transformers==4.0.2 "
    "diffusers==0.33.1 accelerate==1.6.0 torch==2.5.1 torchvision peft==0.15.1 starlette==0.46.2 uvicorn pandas orjson "
    "einops Pillow"
).split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("toolkit", type=Path, help="A clone of the toolkit's repository.")
    toolkit = parser.parse_args().toolkit.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = _container(folder)
        model = _model(folder / "repository")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [python, "-m", "uvicorn", "huggingface_inference_toolkit.webservice_starlette:app", "--port", port]
        environment = {**os.environ, "HF_MODEL_DIR": str(model), "PYTHONPATH": str(toolkit / "src")}
        with subprocess.Popen(list(map(str, command)), env=environment, cwd=folder) as process:
            try:
                _compare(f"http://127.0.0.1:{port}", model, process)
            finally:
                process.terminate()


def _container(folder: Path) -> Path:
    """Install as the container's entry point does: what it has, then the model's requirements.txt."""
    uv = [os.environ.get("UV", "uv")]  # `uv run` says where it is
    subprocess.run([*uv, "build", "-q", "--wheel", "-o", str(folder), str(ROOT)], check=True)
    (wheel,) = folder.glob("*.whl")
    lines = (ROOT / "examples" / "endpoint" / "requirements.txt").read_text().splitlines()
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(str(wheel) if line.startswith("llama-index") else line for line in lines))
    subprocess.run([*uv, "venv", "-q", "--python", "3.11", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [*uv, "pip", "install", "-q", "--python", str(python)]
    subprocess.run([*install, *CONTAINER], check=True)
    subprocess.run([*install, "-r", str(requirements)], check=True)
    return python


def _model(folder: Path) -> Path:
    """Write a tiny model as transformers 4 wrote the published ones, and the handler beside it."""
    build_checkpoint("ColQwen2", folder, legacy_names=True)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        if "mrope_section" in (rope := part.get("rope_parameters", {})):
            part["rope_theta"] = rope["rope_theta"]
            part["rope_scaling"] = {"type": "mrope", "rope_type": "default", "mrope_section": rope["mrope_section"]}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {
        "additional_special_tokens": tokenizer.pop("extra_special_tokens"),
        "tokenizer_class": "Qwen2TokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    shutil.copy(ROOT / "examples" / "endpoint" / "handler.py", folder)
    return folder


def _compare(url: str, model: Path, process: subprocess.Popen[bytes]) -> None:
    def answers() -> bool:
        assert process.poll() is None, "the toolkit has ended"
        try:
            return httpx.get(f"{url}/health").is_success
        except httpx.TransportError:
            return False

    wait_for(answers, 300)
    pages = [page_from_node(document) for document in PDFPageReader().load_data(SAMPLE)[:2]]
    local = ColQwenEmbedder(model, device="cpu")
    with EndpointEmbedder(url, "", fingerprint=local.fingerprint) as remote:
        found = remote.embed_pages(pages) + remote.embed_queries(QUERIES)
    expected = local.embed_pages(pages) + local.embed_queries(QUERIES)
    largest = max(float(np.abs(one - other).max()) for one, other in zip(found, expected, strict=True))
    answer = httpx.post(url, json={"inputs": [], "text": QUERIES, "parameters": {}}, timeout=60).json()
    assert len(answer["text"]) == len(QUERIES), answer
    print(f"{len(found)} multi-vectors are the local ones to within {largest:.1e}")  # noqa: T201
    assert largest < 1e-3, "float16 rounds by less"


if __name__ == "__main__":
    main()
