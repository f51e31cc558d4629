#!/bin/sh
# fetch-kafka.sh: prints the directory of Apache Kafka's jars, fetching them if necessary.
#
# Prints only that directory to stdout, and progress to stderr. Environment:
#   KAFKA_HOME             an unpacked Kafka 4.x (its libs directory is used),
#   HALLEY_CACHE           where fetched files are kept (default: .cache in the repository),
#   HALLEY_KAFKA_VERSION   another version from Maven Central.
# Java 17 or newer and Maven are installed if missing and run as root, otherwise reported.
set -eu

version=${HALLEY_KAFKA_VERSION:-4.4.0}
here=$(cd "$(dirname "$0")" && pwd)
cache=${HALLEY_CACHE:-$here/../../.cache}/kafka
jars=$cache/$version

# java reports `17.0.15` or, for a first release, `21`.
java_is_new_enough() {
    major=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${major:-0}" -ge 17 ]
}

sh "$here/need.sh" java default-jre-headless
if ! java_is_new_enough; then
    echo "fetch-kafka.sh: Kafka 4 needs Java 17 or newer; this one is: $(java -version 2>&1 | head -n 1)" >&2
    exit 1
fi

if [ -n "${KAFKA_HOME:-}" ]; then
    if [ ! -d "$KAFKA_HOME/libs" ]; then
        echo "fetch-kafka.sh: KAFKA_HOME ($KAFKA_HOME) has no libs directory; set it to an unpacked Kafka 4.x" >&2
        exit 1
    fi
    echo "$KAFKA_HOME/libs"
    exit 0
fi
if [ -d "$jars" ]; then
    (cd "$jars" && pwd)
    exit 0
fi

sh "$here/need.sh" mvn maven
echo "fetch-kafka.sh: fetching Apache Kafka $version from Maven Central into $jars (about 45 MB, once)" >&2
mkdir -p "$cache"
# Filled in a temporary directory and renamed, so that an interrupted or concurrent fetch leaves no
# incomplete directory.
partial=$(mktemp -d "$cache/fetching.XXXXXX")
trap 'rm -rf "$partial"' EXIT
cat > "$partial/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>halley</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId>
      <artifactId>kafka_2.13</artifactId>
      <version>$version</version>
    </dependency>
  </dependencies>
</project>
POM
mvn -B -q -f "$partial/pom.xml" dependency:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$partial/jars" >&2
if [ ! -e "$partial/jars/kafka_2.13-$version.jar" ]; then
    echo "fetch-kafka.sh: Maven succeeded but did not fetch kafka_2.13-$version.jar" >&2
    exit 1
fi
mv -T "$partial/jars" "$jars" 2>/dev/null || [ -d "$jars" ]
(cd "$jars" && pwd)
