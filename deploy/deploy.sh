#!/usr/bin/env bash
# Deploy the stack, or change it: always with the same variables and files, those of deploy/ovia-backup.env.
set -euo pipefail
cd "$(dirname "$0")/.."
variables=deploy/ovia-backup.env
if [ ! -r "$variables" ]; then
    echo "error: there is no $variables: without it every setting would be its default, and backups pruned by it." \
        "Next: cp deploy/ovia-backup.env.example $variables, and look through it" >&2
    exit 1
fi
set -a
# shellcheck source=/dev/null
. "$variables"
# Each deployment runs the hand-over of the volume again.
DEPLOYED="$(date -u +%Y-%m-%dT%H:%M:%SZ)"
# One role of one server: its password changes for both.
SECOND_POSTGRES_PASSWORD_SECRET="${SECOND_POSTGRES_PASSWORD_SECRET:-${POSTGRES_PASSWORD_SECRET:-ovia-backup_postgres_password}}"
set +a
image="${POSTGRES_IMAGE:-postgres:16}"
case "$image" in
*@sha256:*) ;;
*)
    echo "warning: $image is a tag, which names another image tomorrow. Next: docker pull $image; docker image inspect" \
        "--format '{{index .RepoDigests 0}}' $image; then POSTGRES_IMAGE=$image@sha256:... in $variables" >&2
    ;;
esac
files=()
for file in ${STACK_FILES:-deploy/stack.yml}; do
    files+=(--compose-file "$file")
done
# The image was built here: there is no registry to ask for it.
exec docker stack deploy --resolve-image never "${files[@]}" ovia-backup
