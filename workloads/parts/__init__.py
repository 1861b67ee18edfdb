"""What specs of synthetic workloads are made of: clients, arrivals, lengths, misbehaviour."""
