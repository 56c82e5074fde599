"""The frozen nouns that flow through the service, in the order of the data.

    bytes -> Delivery -> [Alert] -> Incident -> Playbook -> [Finding] -> [Mitigation]
          -> Decision -> Outcome -> Verdict -> Report

Every room imports these and nothing here imports a room. All datetimes are aware.
"""
