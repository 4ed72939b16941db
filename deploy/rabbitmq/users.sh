#!/bin/sh
# Makes the users that deploy/rabbitmq/permissions.json names, and gives them those permissions on the virtual host /. For another virtual host make
# the file with `postrider topology export --format permissions --vhost NAME` and name it in PERMISSIONS.
#
#   PRODUCER_PASSWORD=... GATEWAY_PASSWORD=... WORKER_PASSWORD=... TOOL_PASSWORD=... TOPOLOGY_PASSWORD=... sh users.sh [options of rabbitmqctl]
#
# A user that is there keeps its tags and gets the password. Producers that must not publish for each other's tenants need a user each: copy the lines
# of postrider-producer.
set -eu
permissions=${PERMISSIONS:-$(dirname "$0")/permissions.json}
ctl=${RABBITMQCTL:-rabbitmqctl}

user() {
  [ -n "$2" ] || { echo "no password for $1: set it in the environment, see the head of this file" >&2; exit 1; }
  # The password goes by standard input: arguments are seen by everybody on the machine.
  printf '%s\n' "$2" | "$ctl" $options add_user "$1" >/dev/null 2>&1 ||
    printf '%s\n' "$2" | "$ctl" $options change_password "$1" >/dev/null
}

options="$*"
user postrider-producer "${PRODUCER_PASSWORD:-}"
user postrider-gateway "${GATEWAY_PASSWORD:-}"
user postrider-worker "${WORKER_PASSWORD:-}"
user postrider-tool "${TOOL_PASSWORD:-}"
user postrider-topology "${TOPOLOGY_PASSWORD:-}"
"$ctl" $options import_definitions "$permissions"
