"""Tables, migrations, the one writer, the claim and the ledger."""
