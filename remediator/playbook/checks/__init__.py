"""What an expert sees in the evidence: pure values and decisions that playbooks share."""
