# Sourced by cassandra and nodetool: where things are and which Java runs them.
CASSANDRA_HOME=${CASSANDRA_HOME:-$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)}
CASSANDRA_CONF=${CASSANDRA_CONF:-$CASSANDRA_HOME/conf}
CLASSPATH=$CASSANDRA_CONF:$CASSANDRA_HOME/lib/*
JAVA=${JAVA_HOME:+$JAVA_HOME/bin/}java

# The lines of an options file that are options.
java_options() { grep -hv -e '^[[:space:]]*#' -e '^[[:space:]]*$' "$@"; }
