"""A Ray cluster of several nodes on this machine, as a program that is told what to do, a line each.

``add UNITS`` starts a node with that many units of the resource ``data`` and prints its number; ``remove NUMBER``
kills one.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    print(f"address {cluster.address}", flush=True)
    nodes = []
    try:
        for line in sys.stdin:
            command, argument = line.split()
            if command == "add":
                nodes.append(cluster.add_node(num_cpus=4, resources={"data": int(argument)}))
                print(f"node {len(nodes) - 1}", flush=True)
            else:
                cluster.remove_node(nodes[int(argument)], allow_graceful=False)
                print(f"removed {argument}", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
