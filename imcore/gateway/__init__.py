"""The server's half of live delivery: sessions, fan-out, acks and receipts."""
