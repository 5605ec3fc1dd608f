--
-- PostgreSQL database cluster dump
--

\restrict EJB7sZsZp80cBAKcDeBHYYGmPSqmrP0xalGHcsoeST0wt7aaiGeTzH05aLTgyWI

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






\unrestrict EJB7sZsZp80cBAKcDeBHYYGmPSqmrP0xalGHcsoeST0wt7aaiGeTzH05aLTgyWI

--
-- PostgreSQL database cluster dump complete
--

