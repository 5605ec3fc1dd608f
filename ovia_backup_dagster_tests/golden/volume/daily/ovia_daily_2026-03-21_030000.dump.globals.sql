--
-- PostgreSQL database cluster dump
--

\restrict UVrJcbYKmMYv3DB3iTPTZ5xDnxikG34z46UKdx1G41MQhoiqqrNJtPoerX5aWOk

SET default_transaction_read_only = off;

SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

--
-- Roles
--

CREATE ROLE ovia;
ALTER ROLE ovia WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS;
CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER INHERIT CREATEROLE CREATEDB LOGIN REPLICATION BYPASSRLS;
CREATE ROLE readers;
ALTER ROLE readers WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;

--
-- User Configurations
--


--
-- Role memberships
--

GRANT readers TO ovia WITH INHERIT TRUE GRANTED BY postgres;






\unrestrict UVrJcbYKmMYv3DB3iTPTZ5xDnxikG34z46UKdx1G41MQhoiqqrNJtPoerX5aWOk

--
-- PostgreSQL database cluster dump complete
--

