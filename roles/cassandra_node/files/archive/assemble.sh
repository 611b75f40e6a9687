#!/usr/bin/env bash
# assemble.sh VERSION OUTPUT
# Makes an archive in the layout of Cassandra's official tarball (lib/, bin/, conf/) from the jars that
# Maven's own client fetches. Every jar must carry the sha256 in VERSION.sha256, and no other jar may be
# there: else nothing is written. Prints "unchanged" or "assembled" as its last line.
set -euo pipefail

version=$1
output=$(realpath -m "$2")
here=$(cd "$(dirname "$0")" && pwd)
pins=$here/$version.sha256
plugin=org.apache.maven.plugins:maven-dependency-plugin:3.6.1

refuse() { printf 'refused: %s\n' "$*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

[ -s "$pins" ] || refuse "no checksums are pinned for Cassandra $version ($pins is missing); pin them, or set cassandra_node_archive to an official tarball"

mkdir -p "$(dirname "$output")"
# Several runs (lab, scenarios) may want the archive at once.
exec 9>"$output.lock"
flock 9

recipe=$(cd "$here" && find . -type f -not -name '*.sha256' -print0 | sort -z | xargs -0 cat "$pins" | sha256sum | cut -d' ' -f1)
if [ -f "$output" ] && [ "$(cat "$output.recipe" 2>/dev/null)" = "$recipe $(sha256sum <"$output" | cut -d' ' -f1)" ]; then
  echo unchanged
  exit 0
fi

if ! command -v mvn >/dev/null; then
  command -v apt-get >/dev/null || refuse "Maven's client (mvn) is not installed on the controller; install it, or set cassandra_node_archive"
  as_root apt-get update -q >/dev/null
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends maven >/dev/null
fi

work=$(mktemp -d "$(dirname "$output")/assemble.XXXXXX")
trap 'rm -rf "$work"' EXIT
top=$work/apache-cassandra-$version
mkdir -p "$top"
mvn --batch-mode --quiet --file "$here/pom.xml" "$plugin:copy-dependencies" \
  -Dcassandra.version="$version" -DincludeScope=runtime -DoutputDirectory="$top/lib" \
  -DexcludeClassifiers=osx-x86_64,osx-aarch_64,windows-x86_64,linux-riscv64 >"$work/mvn.log" 2>&1 ||
  refuse "Maven could not fetch Cassandra $version: $(grep -m1 ERROR "$work/mvn.log" || tail -n1 "$work/mvn.log")"

(cd "$top/lib" && LC_ALL=C sha256sum -- *.jar) >"$work/found.sha256"
if ! difference=$(diff "$pins" "$work/found.sha256"); then
  refuse "the jars of Cassandra $version are not those that were pinned in $pins ('<' pinned, '>' found): $difference"
fi

cp -R "$here/bin" "$here/conf" "$top/"
chmod -R u=rwX,go=rX "$top"
chmod 0755 "$top"/bin/cassandra "$top"/bin/nodetool
# Same names, order, owner and times on every machine, so that the same jars give the same tar.
tar --create --directory "$work" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 "apache-cassandra-$version" |
  gzip --no-name -1 >"$work/archive.tar.gz"
mv "$work/archive.tar.gz" "$output"
echo "$recipe $(sha256sum <"$output" | cut -d' ' -f1)" >"$output.recipe"
echo assembled
