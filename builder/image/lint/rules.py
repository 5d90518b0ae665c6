"""What makes an image with CUDA in it large, slow to start, unsafe or wrong, and a general linter does not see.

Each rule is one function over a Dockerfile; only the stages that the final image is made of count, unless a rule says
otherwise. The facts behind them, with their sources, stand in docs/lint.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from builder.image.lint.parse import Dockerfile, Instruction, Stage, substitute, variables


class Hit(NamedTuple):
    line: int
    message: str


@dataclass(frozen=True)
class Rule:
    """severity: "error" stops a build, "warning" does not.  why, fix: one sentence each."""

    id: str
    severity: str
    title: str
    why: str
    fix: str
    check: Callable[[Dockerfile, tuple[str, ...]], Iterator[Hit]]


# Packages whose wheels bring CUDA libraries of their own, by their names on PyPI.
_CUDA_WHEELS = (
    r"torch|torchvision|vllm|sglang|sgl-kernel|sglang-kernel|tensorrt[-_]llm|tensorrt|onnxruntime-gpu|flashinfer[-\w]*|xformers|"
    r"flash[-_]attn|cupy-cuda\w+|jax\[cuda\w*\]|nvidia-[a-z0-9-]+|tensorflow\[and-cuda\]"
)
_INSTALL = r"(?:\b(?:pip3?|uv\s+pip|micromamba|mamba|conda)\s+install\b|\buv\s+(?:sync|add)\b|\bpoetry\s+(?:install|add)\b)"
_WHEEL = re.compile(
    rf"{_INSTALL}[^;&|]*?[\s'\"](?:(?:{_CUDA_WHEELS})(?=[\s'\"=<>~!\[;@]|$)|(?:-r\s*|--requirements?[ =])\S*cuda|\S+/whl/cu\d)",
    re.IGNORECASE,
)
_APT_CUDA = re.compile(
    r"\bapt(?:-get)?\s+(?:-\S+\s+)*install\b[^;&|]*?\s(cuda-(?!keyring|compat)\S+|libcu(?:blas|fft|rand|solver|sparse)\S*|libcudnn\S*|libnccl\S*)"
)
_CUDA_IMAGE = re.compile(r"(?:^|/)nvidia/cuda:\S*?(base|runtime|devel)|(?:^|/)nvidia/cuda(?=[:@]|$)")
_DEVEL = re.compile(
    r"[:-](?:[\w.]*-)*devel\b|^nvcr\.io/nvidia/(?:pytorch|tensorflow|nemo|cuda-dl-base)[:@]|(?:^|/)tensorrt-llm/devel\b"
)
_TREE = re.compile(
    r"(?:^|/)(?:\.?venv|site-packages|dist-packages|conda|miniconda3?|envs)(?:/|$)|^/usr/local/?$|^/usr/?$|^/opt/?$|^/$"
)


def _devel_final(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    root = file.chain()[0]
    if _DEVEL.search(root.image):
        yield Hit(file.final.line, f"the final stage is built on {root.image}")


def _cuda_twice(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    chain = file.chain()
    wheels = _first(_WHEEL, [*chain, *_copied_from(file, chain)])
    if wheels is None:
        return
    image = _CUDA_IMAGE.search(chain[0].image)
    if image and image[1] != "base":
        yield Hit(
            chain[0].line, f"{chain[0].image} has the CUDA libraries, and line {wheels} installs wheels that bring their own"
        )
    if apt := _first(_APT_CUDA, chain):
        yield Hit(apt, f"CUDA from apt beside the wheels of line {wheels}, which bring their own")


def _legacy_cuda_env(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    env = _environment(file)
    if "CUDA_VERSION" in env and "NVIDIA_REQUIRE_CUDA" not in env:
        yield Hit(env["CUDA_VERSION"][1], "CUDA_VERSION without NVIDIA_REQUIRE_CUDA")


def _ld_library_path(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    env, chain = _environment(file), file.chain()
    if "LD_LIBRARY_PATH" in env and (wheels := _first(_WHEEL, [*chain, *_copied_from(file, chain)])):
        value, line = env["LD_LIBRARY_PATH"]
        yield Hit(line, f"LD_LIBRARY_PATH={value} goes before the RPATHs of the wheels of line {wheels}")


_ARCH_NAMES = (
    "TORCH_CUDA_ARCH_LIST",
    "FLASHINFER_CUDA_ARCH_LIST",
    "CMAKE_CUDA_ARCHITECTURES",
    "CUDA_ARCHITECTURES",
    "CUDAARCHS",
)
_ARCH_SET = re.compile(rf"(?:\b|-D)({'|'.join(_ARCH_NAMES)})(?::STRING)?=(?:\"([^\"]*)\"|'([^']*)'|(\S+))")
_ARCH = re.compile(r"(\d+)\.(\d)[af]?(\+PTX)?|(\d{2,3})[af]?(?:-(real|virtual))?(\+PTX)?")


def _arch_list(file: Dockerfile, targets: tuple[str, ...]) -> Iterator[Hit]:
    """In any stage: what is compiled there is meant for the target."""
    for stage in file.stages:
        values = variables([*file.globals, *(one for s in file.chain(stage) for one in s.instructions)])
        for one in stage.instructions:
            for match in _ARCH_SET.finditer(one.text) if one.keyword in ("ENV", "ARG", "RUN") else ():
                name, value = match[1], substitute(match[2] or match[3] or match[4], values)
                known = [_arch(m) for m in _ARCH.finditer(value)]
                line = one.line_of(re.compile(re.escape(name)))
                for target in targets if known else ():
                    if not any(_runs(arch, ptx, target) for arch, ptx in known):
                        yield Hit(line, f"{name}={value} holds nothing that a GPU of compute capability {target} can run")
                extra = [f"{a // 10}.{a % 10}" for a, p in known if targets and not any(_runs(a, p, t) for t in targets)]
                if extra and any(_runs(a, p, t) for a, p in known for t in targets):
                    yield Hit(line, f"{name}={value} also compiles for {', '.join(extra)}, which no target can run")


def _arch(match: re.Match[str]) -> tuple[int, bool]:
    """(compute capability times ten, whether there is PTX)."""
    if match[1]:
        return int(match[1]) * 10 + int(match[2]), bool(match[3])
    return int(match[4]), bool(match[6]) or match[5] == "virtual" or match[5] is None


def _runs(arch: int, ptx: bool, target: str) -> bool:
    """A cubin runs on the same major and an equal or higher minor, PTX on anything newer (CUDA programming guide, 5.2)."""
    major, _, minor = target.partition(".")
    wanted = int(major) * 10 + int(minor or 0)
    return (arch // 10 == wanted // 10 and arch <= wanted) or (ptx and arch <= wanted)


def _giant_layer(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    chain = file.chain()
    if line := _first(_WHEEL, chain):
        yield Hit(line, "the engine and all of its CUDA libraries become one layer")
    for stage in chain:
        for one in stage.instructions:
            source = file.stage(one.flag("from")) if one.keyword == "COPY" and one.flag("from") else None
            trees = [w for w in one.words()[:-1] if _TREE.search(w)] if source else []
            if source and trees and _first(_WHEEL, file.chain(source)):
                yield Hit(
                    one.line,
                    f"{trees[0]} of stage {one.flag('from')} becomes one layer, with the engine and its CUDA libraries",
                )


def _root_user(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    users = [one for stage in file.chain() for one in stage.instructions if one.keyword == "USER"]
    if not users:
        yield Hit(file.final.line, "no USER, so the server runs as root")
    elif users[-1].value.partition(":")[0] in ("root", "0"):
        yield Hit(users[-1].line, f"the last USER is {users[-1].value}")


_COMPILE = re.compile(r"\bcompileall\b(?![^;&|]*--invalidation-mode[ =](?:un)?checked-hash)")
_PIP = re.compile(r"\bpip3?\s+install\b(?![^;&|]*--no-compile)")
_UV = re.compile(r"\buv\b[^;&|]*--compile-bytecode|UV_COMPILE_BYTECODE=(?:1|true)")


def _mtime_pyc(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    """In any stage: the files travel."""
    everything = [one for stage in file.stages for one in stage.instructions]
    if not any("SOURCE_DATE_EPOCH" in one.value for one in [*file.globals, *everything]):
        return  # nobody sets the times of the files
    hashed = any("PYC_INVALIDATION_MODE" in one.text for one in everything)
    for one in everything:
        for pattern in (_COMPILE, _PIP, *(() if hashed else (_UV,))):
            if one.keyword in ("RUN", "ENV") and pattern.search(one.text) and not (pattern is _PIP and _no_compile(everything)):
                yield Hit(
                    one.line_of(pattern), "compiles Python by time stamp in an image whose time stamps are set afterwards"
                )
                break


def _no_compile(everything: list[Instruction]) -> bool:
    return any(re.search(r"PIP_NO_COMPILE=(?:1|true|on|yes)", one.value) for one in everything if one.keyword == "ENV")


_PIPED = re.compile(
    r"\b(?:curl|wget)\b[^;&|]*\|\s*(?:sudo\s+(?:-\S+\s+)*)?(?:env\s+)?(?:\S*/)?(?:ba|da|z|k)?sh\b"
    r"|\b(?:ba|da|z)?sh\s+(?:-\w+\s+)*<\(\s*(?:curl|wget)\b|\bsh\s+-c\s+[\"']?\$\((?:curl|wget)\b|\b(?:curl|wget)\b[^;&|]*\|\s*python3?\b"
)


def _pipe_to_shell(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    """In any stage: what it leaves is copied on."""
    for stage in file.stages:
        for one in stage.instructions:
            if one.keyword == "RUN" and (match := _PIPED.search(one.text)):
                yield Hit(one.line_of(_PIPED), f"runs what a download answers: {match[0][:60]}")


_WEIGHT_FILE = re.compile(r"\.(?:safetensors|gguf|ckpt|pth|onnx|engine)(?:[\"'\s\])]|$)", re.IGNORECASE)
_DOWNLOAD = re.compile(
    r"\b(?:huggingface-cli|hf)\s+download\b|\bsnapshot_download\s*\(|\bhf_hub_download\s*\(|\.from_pretrained\s*\(|\bgit\s+lfs\s+(?:pull|clone|fetch)\b"
    r"|\bollama\s+pull\b|\b(?:curl|wget|aws\s+s3\s+(?:cp|sync)|gsutil|azcopy)\b[^;&|]*(?:\.safetensors|\.gguf)\b",
    re.IGNORECASE,
)


def _weights_in_layer(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    for stage in file.chain():
        for one in stage.instructions:
            if one.keyword in ("COPY", "ADD"):
                for word in one.words()[:-1]:
                    if _WEIGHT_FILE.search(word) or re.match(r"https?://huggingface\.co/", word):
                        yield Hit(one.line, f"{one.keyword} puts {word} into a layer")
            elif one.keyword == "RUN" and (match := _DOWNLOAD.search(one.text)):
                yield Hit(one.line_of(_DOWNLOAD), f"{match[0].strip('( ')[:60]} leaves weights in a layer")


_SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKEN|PASSWORD|PASSWD|SECRET|SECRET_KEY|API_KEY|APIKEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS)$", re.IGNORECASE
)
_SWITCH = ("0", "1", "true", "false", "no", "yes")  # NO_CREDENTIALS=1 tells no secret
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bglpat-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9_-]{32,}|\bnvapi-[\w-]{40,}"
    r"|://[^/\s:@$]+:[^/\s:@${}]+@|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def _secret_in_env(file: Dockerfile, _: tuple[str, ...]) -> Iterator[Hit]:
    """In any stage: build arguments stand in the history, and caches are pushed."""
    for one in [*file.globals, *(one for stage in file.stages for one in stage.instructions)]:
        if one.keyword in ("ENV", "ARG"):
            for name, value in one.pairs().items():
                if _SECRET_NAME.search(name) and value not in _SWITCH and (value or one.keyword == "ARG"):
                    yield Hit(one.line_of(re.compile(rf"\b{re.escape(name)}\b")), f"{one.keyword} {name}")
        if _SECRET_VALUE.search(one.text):
            yield Hit(one.line_of(_SECRET_VALUE), f"a literal secret in {one.keyword}")


def _first(pattern: re.Pattern[str], stages: list[Stage]) -> int | None:
    """The line of the first RUN that matches."""
    for stage in stages:
        for one in stage.instructions:
            if one.keyword == "RUN" and pattern.search(one.text):
                return one.line_of(pattern)
    return None


def _copied_from(file: Dockerfile, chain: list[Stage]) -> list[Stage]:
    """The stages that the chain copies from, with their own bases."""
    sources = [file.stage(o.flag("from")) for s in chain for o in s.instructions if o.keyword == "COPY" and o.flag("from")]
    return [stage for source in sources if source for stage in file.chain(source)]


def _environment(file: Dockerfile) -> dict[str, tuple[str, int]]:
    """ENV of the final image: name -> (value, line)."""
    found: dict[str, tuple[str, int]] = {}
    for stage in file.chain():
        for one in stage.instructions:
            for name, value in one.pairs().items() if one.keyword == "ENV" else ():
                known = {key: was for key, (was, _) in found.items()}
                found[name] = substitute(value, known), one.line_of(re.compile(rf"\b{re.escape(name)}\b"))
    return found


RULES: tuple[Rule, ...] = (
    Rule(
        "devel-final", "error", "a devel image as final stage",
        "It carries compilers, headers and static libraries that serving never reads, and every node pulls them.",
        "Compile in an earlier stage; build the final one on a slim base with the wheels' own CUDA.",
        _devel_final,
    ),
    Rule(
        "cuda-twice", "error", "CUDA twice",
        "The wheels find their own libraries by RPATH; the others are never loaded, and are gigabytes.",
        "Use a base without CUDA, such as debian:bookworm-slim or python:3.12-slim.",
        _cuda_twice,
    ),
    Rule(
        "legacy-cuda-env", "error", "an environment that marks a legacy CUDA image",
        "The NVIDIA container toolkit then gives the container all GPUs and invents a driver constraint.",
        "Set NVIDIA_REQUIRE_CUDA=cuda>=MAJOR.MINOR, or leave CUDA_VERSION out.",
        _legacy_cuda_env,
    ),
    Rule(
        "ld-library-path", "warning", "LD_LIBRARY_PATH over the wheels' RPATH",
        "What it names is loaded in place of the libraries that the wheels were built and tested with.",
        "Leave it out; the wheels find their libraries.",
        _ld_library_path,
    ),
    Rule(
        "arch-list", "error", "architectures that are not the target's",
        "A GPU runs machine code of its own major version, or compiles PTX at every start; the rest is dead weight.",
        "Name the compute capabilities that you deploy to, and no others.",
        _arch_list,
    ),
    Rule(
        "giant-layer", "warning", "one giant layer",
        "A layer is fetched and unpacked by one thread, and a change of one package sends all of it again.",
        "Split it by how often things change: CUDA libraries, torch, engine, your code; 100 to 400 MB each.",
        _giant_layer,
    ),
    Rule(
        "root-user", "error", "a server that runs as root",
        "Pod security standards refuse it, and what breaks out of the engine is root on the node.",
        "End with USER 10001:0 and make what is written group-writable.",
        _root_user,
    ),
    Rule(
        "mtime-pyc", "warning", "bytecode by time stamp where time stamps are rewritten",
        "Python finds it stale, and compiles what it imports again at every start.",
        "pip install --no-compile, then python -m compileall --invalidation-mode unchecked-hash.",
        _mtime_pyc,
    ),
    Rule(
        "pipe-to-shell", "error", "a download piped to a shell",
        "Whatever the server answers that day runs as root in the build; nothing says which bytes those were.",
        "ADD --checksum=sha256:... URL, or a package with a pinned hash.",
        _pipe_to_shell,
    ),
    Rule(
        "weights-in-layer", "error", "weights in a layer",
        "They make every pull gigabytes longer, in one stream, and are pushed again with every build.",
        "Keep them in a store: builder weights push, and the init container fetches them verified.",
        _weights_in_layer,
    ),
    Rule(
        "secret-in-env", "error", "a secret in ENV or ARG",
        "Both stay readable in the image's configuration and history.",
        "RUN --mount=type=secret,id=NAME, and give it with docker build --secret.",
        _secret_in_env,
    ),
)  # fmt: skip
