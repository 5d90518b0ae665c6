# minilm: triton 0.7.0 on debian:bookworm-slim, for CPUs.
# Rendered by builder from builder.yaml and requirements.lock; change those, not this. Steps: steps/ beside this file.

# base: Python with its whole standard library, certificates, the engine's system libraries, the user.
FROM debian:bookworm-slim AS base
RUN --mount=type=bind,source=steps/apt,target=/run/steps/apt \
    --mount=type=bind,source=steps/python,target=/run/steps/python \
    --mount=type=bind,source=steps/user,target=/run/steps/user \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /run/steps/apt ca-certificates libgomp1 libnuma1 libpython3-stdlib python3 \
 && sh /run/steps/python 3.11 \
 && sh /run/steps/user

# resolve: pip and strip, and an empty virtual environment. Nothing of the tools reaches the image.
FROM base AS resolve
RUN --mount=type=bind,source=steps/apt,target=/run/steps/apt \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /run/steps/apt binutils python3-venv \
 && python3 -m venv /opt/pip \
 && python3 -m venv --without-pip /opt/venv \
 && find /opt/venv ! -type d >/opt/venv.list

# wheels, trim, split: a stage per layer, which depends on its own wheels alone. One RUN: no untrimmed copy is stored.
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
FROM resolve AS wheels-deps
RUN --mount=type=bind,source=steps/wheels,target=/run/steps/wheels \
    --mount=type=bind,source=steps/trim.py,target=/run/steps/trim.py \
    --mount=type=bind,source=steps/trim.json,target=/run/steps/trim.json \
    --mount=type=bind,source=requirements/deps.txt,target=/run/requirements.txt \
    --mount=type=bind,source=wheelhouse/deps,target=/run/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /run/steps/wheels index /run/requirements.txt \
 && /opt/venv/bin/python /run/steps/trim.py deps 1
FROM resolve AS wheels-engine
RUN --mount=type=bind,source=steps/wheels,target=/run/steps/wheels \
    --mount=type=bind,source=steps/trim.py,target=/run/steps/trim.py \
    --mount=type=bind,source=steps/trim.json,target=/run/steps/trim.json \
    --mount=type=bind,source=requirements/engine.txt,target=/run/requirements.txt \
    --mount=type=bind,source=wheelhouse/engine,target=/run/wheelhouse \
    --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=ca --mount=type=secret,id=pip_conf --mount=type=secret,id=netrc \
    sh /run/steps/wheels index /run/requirements.txt \
 && /opt/venv/bin/python /run/steps/trim.py engine 1

# system: libraries of the system that only this engine needs.
FROM base AS system
RUN --mount=type=bind,source=steps/apt,target=/run/steps/apt \
    --mount=type=secret,id=ca --mount=type=secret,id=apt_sources --mount=type=secret,id=apt_auth \
    sh /run/steps/apt libpython3.11

# libraries: every layer, in the order of how seldom it changes.
FROM system AS libraries
COPY --link --from=wheels-runtime /out/1/ /
COPY --link --from=wheels-deps /out/1/ /
COPY --link --from=wheels-engine /out/1/ /

# pyc: bytecode of what a start imports.
FROM libraries AS pyc
RUN --mount=type=bind,source=steps/pyc.py,target=/run/steps/pyc.py \
    ["/opt/venv/bin/python", "-B", "/run/steps/pyc.py", "315532800", "numpy", "pytriton"]

# shipped: builder's own runtime, compiled for this Python.
FROM base AS shipped
COPY builder /out/opt/builder/builder
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -s /out -p / /out \
 && find /out -exec touch -h -d @315532800 {} +

# runtime: the libraries, their bytecode, builder's runtime, the environment.
FROM libraries AS runtime
COPY --link --from=pyc /out/ /
COPY --link --from=shipped /out/ /
ENV PATH="/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
    PYTHONPATH="/opt/builder" \
    PYTHONDONTWRITEBYTECODE="1" \
    PYTHONUNBUFFERED="1" \
    HOME="/home/app" \
    XDG_CACHE_HOME="/home/app/.cache" \
    CUDA_MODULE_LOADING="LAZY" \
    NVIDIA_VISIBLE_DEVICES="all" \
    NVIDIA_DRIVER_CAPABILITIES="compute,utility" \
    BUILDER_GPU="none" \
    BUILDER_GPU_ARCHS="" \
    BUILDER_CUDA="" \
    BUILDER_JIT="off" \
    HF_HUB_OFFLINE="1" \
    HF_HUB_DISABLE_TELEMETRY="1" \
    DO_NOT_TRACK="1" \
    BUILDER_STORE="s3://models/repository" \
    BUILDER_MODEL="minilm" \
    BUILDER_MODELS_ROOT="/var/lib/builder/models" \
    BUILDER_ENGINE="triton" \
    BUILDER_ENGINE_ARGS="[]" \
    BUILDER_PORT="8000" \
    BUILDER_CONTROL_PORT="8001" \
    BUILDER_QUEUE="1" \
    BUILDER_QUEUE_LIMIT="256" \
    BUILDER_WARMUP_BATCH="1" \
    BUILDER_WARMUP_TOKENS="32"
WORKDIR /home/app

# smoke: as the user of the final image, import the engine and the runtime. Fails the build, and the last stage needs its report.
FROM runtime AS smoke
USER 10001:0
RUN --mount=type=bind,source=steps/smoke.py,target=/run/steps/smoke.py \
    ["/opt/venv/bin/python", "/run/steps/smoke.py", "/tmp/smoke.json", "numpy", "pytriton"]

# final: what is pushed.
FROM runtime AS final
COPY --from=smoke --chmod=0444 /tmp/smoke.json /opt/builder/smoke.json
LABEL org.opencontainers.image.title="minilm" \
      org.opencontainers.image.version="latest" \
      org.opencontainers.image.base.name="debian:bookworm-slim" \
      builder.engine="triton 0.7.0" \
      builder.cuda="none" \
      builder.jit="off" \
      builder.lock="sha256:a404337c715a34ec1c13282d8bacbf1379e756888770e05509edcaa4a9163333" \
      builder.tool="0.1.0"
USER 10001:0
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
  CMD ["/opt/venv/bin/python", "-m", "builder.runtime", "probe", "live"]
ENTRYPOINT ["/opt/venv/bin/python", "-m", "builder.runtime"]
CMD ["serve"]
