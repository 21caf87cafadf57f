"""What policies place with: bins, gangs of ranks, chunks, nodes, host memory; what makes a placement faster."""
