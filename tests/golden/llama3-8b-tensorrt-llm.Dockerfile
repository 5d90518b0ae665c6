# llama3-8b: tensorrt-llm 1.2.1 on python:3.12-slim-bookworm, CUDA 13.
# Rendered by builder from builder.yaml and requirements.lock; change those, not this. Steps: steps/ beside this file.

# base: Python with its whole standard library, certificates, the engine's system libraries, the user.
FROM python:3.12-slim-bookworm AS base
RUN --mount=type=bind,source=steps/apt,target=/run/steps/apt \
    --mount=type=bind,source=steps/python,target=/run/steps/python \
    --mount=type=bind,source=steps/user,target=/run/steps/user \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /run/steps/apt ca-certificates libgomp1 libnuma1 \
 && sh /run/steps/python 3.12 \
 && sh /run/steps/user

# resolve: pip and strip, and an empty virtual environment. Nothing of the tools reaches the image.
FROM base AS resolve
RUN --mount=type=bind,source=steps/apt,target=/run/steps/apt \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /run/steps/apt binutils \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv \
 && find /opt/venv ! -type d >/opt/venv.list

# proof: NVIDIA's lister of GPU code, which the stages below check each pruned file with. It reaches no image.
FROM resolve AS proof
RUN --mount=type=bind,source=steps/wheels,target=/run/steps/wheels \
    --mount=type=bind,source=proof/requirements.txt,target=/run/requirements.txt \
    --mount=type=bind,source=proof/wheelhouse,target=/run/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /run/steps/wheels index /run/requirements.txt \
 && install -D -t /out /opt/venv/lib/python*/site-packages/nvidia/cu*/bin/cuobjdump

# wheels, trim, prune, split: a stage per layer, which depends on its own wheels alone. One RUN: no untrimmed copy is stored.
FROM resolve AS wheels-runtime
RUN --mount=type=bind,source=steps/wheels,target=/run/steps/wheels \
    --mount=type=bind,source=steps/trim.py,target=/run/steps/trim.py \
    --mount=type=bind,source=steps/trim.json,target=/run/steps/trim.json \
    --mount=type=bind,source=requirements/runtime.txt,target=/run/requirements.txt \
    --mount=type=bind,source=wheelhouse/runtime,target=/run/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /run/steps/wheels index /run/requirements.txt \
 && /opt/venv/bin/python /run/steps/trim.py runtime 1
FROM resolve AS wheels-torch
RUN --mount=type=bind,source=steps/wheels,target=/run/steps/wheels \
    --mount=type=bind,source=steps/trim.py,target=/run/steps/trim.py \
    --mount=type=bind,source=steps/trim.json,target=/run/steps/trim.json \
    --mount=type=bind,source=steps/prune.py,target=/run/steps/prune.py \
    --mount=type=bind,source=steps/prune.json,target=/run/steps/prune.json \
    --mount=type=bind,source=slim,target=/run/slim \
    --mount=type=bind,from=proof,source=/out,target=/run/proof \
    --mount=type=bind,source=requirements/torch.txt,target=/run/requirements.txt \
    --mount=type=bind,source=wheelhouse/torch,target=/run/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /run/steps/wheels index /run/requirements.txt \
 && /opt/venv/bin/python /run/steps/trim.py torch 2
FROM resolve AS wheels-engine
RUN --mount=type=bind,source=steps/wheels,target=/run/steps/wheels \
    --mount=type=bind,source=steps/trim.py,target=/run/steps/trim.py \
    --mount=type=bind,source=steps/trim.json,target=/run/steps/trim.json \
    --mount=type=bind,source=steps/prune.py,target=/run/steps/prune.py \
    --mount=type=bind,source=steps/prune.json,target=/run/steps/prune.json \
    --mount=type=bind,source=slim,target=/run/slim \
    --mount=type=bind,from=proof,source=/out,target=/run/proof \
    --mount=type=bind,source=requirements/engine.txt,target=/run/requirements.txt \
    --mount=type=bind,source=wheelhouse/engine,target=/run/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /run/steps/wheels index /run/requirements.txt \
 && /opt/venv/bin/python /run/steps/trim.py engine 1

# slimmed: what was taken out of which library, and what was left and why.
FROM scratch AS slimmed
COPY --from=wheels-torch /out/slim/ /out/
COPY --from=wheels-engine /out/slim/ /out/

# system: libraries of the system that only this engine needs.
FROM base AS system
RUN --mount=type=bind,source=steps/apt,target=/run/steps/apt \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /run/steps/apt libopenmpi3

# libraries: every layer, in the order of how seldom it changes.
FROM system AS libraries
COPY --link --from=wheels-runtime /out/1/ /
COPY --link --from=wheels-torch /out/1/ /
COPY --link --from=wheels-torch /out/2/ /
COPY --link --from=wheels-engine /out/1/ /

# pyc: bytecode of what a start imports.
FROM libraries AS pyc
RUN --mount=type=bind,source=steps/pyc.py,target=/run/steps/pyc.py \
    ["/opt/venv/bin/python", "-B", "/run/steps/pyc.py", "315532800", "torch", "transformers"]

# shipped: builder's own runtime, compiled for this Python.
FROM base AS shipped
COPY builder /out/opt/builder/builder
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -s /out -p / /out \
 && find /out -exec touch -h -d @315532800 {} +

# runtime: the libraries, their bytecode, builder's runtime, the environment.
FROM libraries AS runtime
COPY --link --from=pyc /out/ /
COPY --link --from=shipped /out/ /
COPY --link --from=slimmed /out/ /
ENV PATH="/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    PYTHONPATH="/opt/builder" \
    PYTHONDONTWRITEBYTECODE="1" \
    PYTHONUNBUFFERED="1" \
    HOME="/home/app" \
    XDG_CACHE_HOME="/home/app/.cache" \
    CUDA_MODULE_LOADING="LAZY" \
    NVIDIA_VISIBLE_DEVICES="all" \
    NVIDIA_DRIVER_CAPABILITIES="compute,utility" \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0" \
    BUILDER_GPU="required" \
    BUILDER_GPU_ARCHS="9.0" \
    BUILDER_CUDA="13.0" \
    BUILDER_JIT="off" \
    HF_HUB_OFFLINE="1" \
    HF_HUB_DISABLE_TELEMETRY="1" \
    DO_NOT_TRACK="1" \
    BUILDER_STORE="s3://llm-weights/llama3-8b" \
    BUILDER_REGION="us-west-2" \
    BUILDER_COMPILE_CACHE_ROOT="/opt/cache" \
    CUDA_CACHE_PATH="/opt/cache/cuda" \
    TORCHINDUCTOR_CACHE_DIR="/opt/cache/inductor" \
    TRITON_CACHE_DIR="/opt/cache/triton" \
    TORCH_EXTENSIONS_DIR="/opt/cache/torch-extensions" \
    DG_JIT_CACHE_DIR="/opt/cache/deep-gemm" \
    TRTLLM_DG_CACHE_DIR="/opt/cache/trtllm-deep-gemm" \
    TLLM_LLMAPI_BUILD_CACHE_ROOT="/opt/cache/tensorrt-llm" \
    FLASHINFER_WORKSPACE_BASE="/opt/cache/flashinfer" \
    TILELANG_CACHE_DIR="/opt/cache/tilelang" \
    TVM_FFI_CACHE_DIR="/opt/cache/tvm-ffi" \
    CUTE_DSL_CACHE_DIR="/opt/cache/cute-dsl" \
    FLASH_ATTENTION_CUTE_DSL_CACHE_DIR="/opt/cache/flash-attention" \
    QUACK_CACHE_DIR="/opt/cache/quack" \
    CUDA_TILE_CACHE_DIR="/opt/cache/cutile" \
    CUDNN_FRONTEND_COMPILED_CACHE="/opt/cache/cudnn-frontend" \
    CUDNN_FRONTEND_CAKE_CACHE_DIR="/opt/cache/cudnn-cake" \
    FLEX_ATTENTION_CUTE_DSL_CACHE_DIR="/opt/cache/cudnn-flex" \
    NUMBA_CACHE_DIR="/opt/cache/numba" \
    CUDA_CACHE_MAXSIZE="4294967296" \
    BUILDER_LOCK="sha256:381d816819baf308c8f765135bbf395de010fb86d9c34f8408e4c62e9086fca7" \
    BUILDER_MODEL="llama3-8b" \
    BUILDER_MODELS_ROOT="/var/lib/builder/models" \
    BUILDER_ENGINE="tensorrt-llm" \
    BUILDER_ENGINE_ARGS="[]" \
    BUILDER_PORT="8000" \
    BUILDER_CONTROL_PORT="8001" \
    BUILDER_QUEUE="1" \
    BUILDER_QUEUE_LIMIT="256" \
    BUILDER_WARMUP_BATCH="1,4" \
    BUILDER_WARMUP_TOKENS="128,1024"
WORKDIR /home/app

# smoke: as the user of the final image, import the engine and the runtime. Fails the build, and the last stage needs its report.
FROM runtime AS smoke
USER 10001:0
RUN --mount=type=bind,source=steps/smoke.py,target=/run/steps/smoke.py \
    ["/opt/venv/bin/python", "/run/steps/smoke.py", "/tmp/smoke.json", "torch", "transformers"]

# final: what is pushed.
FROM runtime AS final
COPY --from=smoke --chmod=0444 /tmp/smoke.json /opt/builder/smoke.json
LABEL org.opencontainers.image.title="llama3-8b" \
      org.opencontainers.image.version="tensorrt-llm-1.2.1" \
      org.opencontainers.image.base.name="python:3.12-slim-bookworm" \
      builder.engine="tensorrt-llm 1.2.1" \
      builder.cuda="13.0" \
      builder.gpu-archs="9.0" \
      builder.prune="oss" \
      builder.jit="off" \
      builder.lock="sha256:381d816819baf308c8f765135bbf395de010fb86d9c34f8408e4c62e9086fca7" \
      builder.tool="0.1.0"
USER 10001:0
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["/opt/venv/bin/python", "-m", "builder.runtime", "probe", "live"]
ENTRYPOINT ["/opt/venv/bin/python", "-m", "builder.runtime"]
CMD ["serve"]
