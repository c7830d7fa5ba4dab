# docker build -t REGISTRY/voxfleet:0.1.0 . && docker push REGISTRY/voxfleet:0.1.0
# The image of ray_cluster.yaml and configs/cluster/: Voxfleet as `make` installs it, from the pinned constraints.
FROM python:3.11-slim-bookworm

# git and make install; rsync and ssh are the cluster launcher's; wget is that of KubeRay's probes;
# the launcher starts Ray in login shells, which forget the PATH below
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make openssh-client rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ray \
    && install --directory --owner ray /opt/voxfleet \
    && echo "export PATH=/opt/voxfleet/.venv/bin:\$PATH" > /etc/profile.d/voxfleet.sh

USER 1000
WORKDIR /opt/voxfleet
COPY --chown=ray Makefile constraints.txt pyproject.toml README.md LICENSE ./
COPY --chown=ray platform platform
COPY --chown=ray jobs jobs
COPY --chown=ray configs configs
RUN PIP_NO_CACHE_DIR=1 make .venv/demo-installed .venv/cloud-installed
# without a token Ray's ports run code of whoever reaches them
ENV PATH=/opt/voxfleet/.venv/bin:$PATH \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
CMD ["voxfleet", "--help"]
