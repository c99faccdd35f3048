"""How figures come about: servers, sessions, rounds, and what is shown and saved of them."""
