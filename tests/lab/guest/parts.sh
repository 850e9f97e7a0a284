#!/bin/sh
# parts.sh N REPORT PYTEST...: run pytest in N parts at once, each in a private place and with REPORT-K.json for its
# outcomes; what they say, line by line, begins with the part's number. Fails if any part does.
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
    # 5: no test fell to this part.
    case $status in 0 | 5) ;; *) exit "${status:-1}" ;; esac
done
