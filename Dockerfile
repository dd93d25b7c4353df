# The package for a machine without a GPU, with the versions its tests pass with: docker build -t rllib-hpo:cpu .
# docker run --rm -v "$PWD/runs:/experiments/runs" rllib-hpo:cpu train --algorithm sac-hpo --task hopper --out runs/hopper
# The image for Kubernetes, with CUDA, is cluster/Dockerfile.
FROM python:3.11-slim-bookworm

# MuJoCo films without a display through EGL; Ray's command line looks at processes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libglib2.0-0 procps \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 hpo && mkdir /experiments && chown hpo:hpo /experiments
USER hpo
ENV PATH=/home/hpo/venv/bin:$PATH \
    MUJOCO_GL=egl \
    OMP_NUM_THREADS=1 \
    RAY_USAGE_STATS_ENABLED=0

# The dependencies first, so that a change of the code does not fetch them again.
WORKDIR /home/hpo/src
COPY --chown=hpo:hpo constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m venv /home/hpo/venv \
    && mkdir rllib_hpo && touch rllib_hpo/__init__.py \
    && pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt '.[export,search,video]'
COPY --chown=hpo:hpo rllib_hpo rllib_hpo
COPY --chown=hpo:hpo tune_configs tune_configs
COPY --chown=hpo:hpo cluster cluster
COPY --chown=hpo:hpo zoo zoo
RUN pip install --no-cache-dir --no-deps --force-reinstall . && rllib-hpo --help >/dev/null

WORKDIR /experiments
ENTRYPOINT ["rllib-hpo"]
CMD ["--help"]
