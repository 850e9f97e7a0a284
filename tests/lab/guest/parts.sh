#!/bin/sh
# parts.sh N REPORT PYTEST...: run pytest in N parallel parts, each in its own namespaces, with its
# outcomes in REPORT-K.json; output lines start with the number of the part. Fails if a part fails.
parts=$1
report=$2
shift 2
if [ "$parts" = 1 ]; then exec tests/private "$@" --outcomes "$report-1.json"; fi
ended=$(mktemp -d)
for part in $(seq "$parts"); do
    {
        tests/private "$@" --part "$part/$parts" --outcomes "$report-$part.json" 2>&1
        echo $? >"$ended/$part"
    } | sed -u "s/^/$part: /" &
done
wait
for part in $(seq "$parts"); do
    status=$(cat "$ended/$part")
    # Exit status 5: this part has no tests.
    case $status in 0 | 5) ;; *) exit "${status:-1}" ;; esac
done
