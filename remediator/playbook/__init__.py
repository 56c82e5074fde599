"""What a playbook is, how playbooks are found, and the checks that they share."""
