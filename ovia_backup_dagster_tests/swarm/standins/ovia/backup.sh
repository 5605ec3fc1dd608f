#!/usr/bin/env bash
# The old script, as the runbook describes it: a dump every day, Sunday's copied, seven and four kept by count.
set -u
mkdir -p "$BACKUP_DIR/daily" "$BACKUP_DIR/weekly"
while true; do
    now="$(date -u +%Y-%m-%d_%H%M%S)"
    file="$BACKUP_DIR/daily/${POSTGRES_DB}_daily_$now.dump"
    if pg_dump -h "$POSTGRES_HOST" -p "$POSTGRES_PORT" -U "$POSTGRES_USER" -d "$POSTGRES_DB" -Fc -f "$file"; then
        echo "backup written: $file"
        [ "$(date -u +%u)" != 7 ] || cp "$file" "$BACKUP_DIR/weekly/${POSTGRES_DB}_weekly_$now.dump"
    fi
    ls -t "$BACKUP_DIR"/daily/*.dump 2> /dev/null | tail -n +8 | xargs -r rm -f
    ls -t "$BACKUP_DIR"/weekly/*.dump 2> /dev/null | tail -n +5 | xargs -r rm -f
    sleep "$SLEEP"
done
