"""What a plan costs: graph, layout, machine and cost model, met."""
